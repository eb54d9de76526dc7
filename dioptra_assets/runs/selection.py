"""Which cells a launch covers, and how many of them it is expected to compute."""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import dagster as dg

Partition = str | None
# The selected partitions of each asset. None stands for all of them.
Selected = dict[dg.AssetKey, set[Partition] | None]


@dataclass(frozen=True)
class Selection:
    """The part of an experiment to compute. Inputs are always included.

    Attributes:
        assets: names with or without the experiment's, `model` or `digits/model`. A trailing `+` adds everything
            downstream. Empty: all.
        cells: partition keys, in which `*` matches anything: `le_net|fgm_0.3`, `*|fgm_*`. Empty: all.
    """

    assets: Collection[str] = ()
    cells: Collection[str] = ()


EVERYTHING = Selection()


class SelectionError(LookupError):
    """A selected asset or cell does not exist. The message lists those available."""


def select(graph: Any, keys: Sequence[dg.AssetKey], only: Selection = EVERYTHING) -> Selected:
    """The selected cells and their inputs.

    Args:
        graph: the asset graph.
        keys: the assets of an experiment, each after its inputs.
        only: the selection.

    Raises:
        SelectionError: a selected asset or cell does not exist.
    """
    experiment = keys[0].path[0]
    named = [key for text in only.assets for key in _named(graph, keys, experiment, text)] or list(keys)
    if not only.cells:
        wanted: Selected = dict.fromkeys(named, None)
    else:
        wanted = {key: matching for key in named if (matching := _matching(graph, key, only.cells))}
        if not wanted:
            raise SelectionError(_no_such_cell(graph, named, only.cells))
    for key in reversed(keys):
        if key in wanted:
            for parent in graph.get(key).parent_keys:
                if parent in keys:
                    _add(wanted, parent, _made_from(graph, key, parent, wanted[key]))
    return {key: wanted[key] for key in keys if key in wanted}


def _named(graph: Any, keys: Sequence[dg.AssetKey], experiment: str, text: str) -> list[dg.AssetKey]:
    parts = re.fullmatch(r"([^+]+)(\+*)", text)
    name = parts[1] if parts else text
    key = dg.AssetKey(name.split("/") if name.split("/")[0] == experiment else [experiment, *name.split("/")])
    if parts is None or key not in keys:
        known = ["/".join(asset.path[1:]) for asset in keys]
        near = get_close_matches("/".join(key.path[1:]), known, n=3) or known
        raise SelectionError(f"experiment {experiment!r} has no asset {text!r}, available: {', '.join(near)}")
    if not parts[2]:
        return [key]
    downstream = {asset for asset in keys if key in graph.get_ancestor_asset_keys(asset)}
    return [key, *(asset for asset in keys if asset in downstream)]


def _matching(graph: Any, key: dg.AssetKey, cells: Collection[str]) -> set[Partition]:
    definition = graph.get(key).partitions_def
    names = [str(partition) for partition in definition.get_partition_keys()] if definition else []
    patterns = [re.compile(fnmatch.translate(cell.replace("[", "[[]"))) for cell in cells]
    return {name for name in names if any(pattern.match(name) for pattern in patterns)}


def _no_such_cell(graph: Any, named: Sequence[dg.AssetKey], cells: Collection[str]) -> str:
    asset = next((key for key in named if graph.get(key).partitions_def), None)
    asked = ", ".join(repr(cell) for cell in cells)
    if asset is None:
        return f"{named[0].to_user_string()} has a single cell without a key: leave out --cell {asked}"
    known = [str(name) for name in graph.get(asset).partitions_def.get_partition_keys()]
    shown = ", ".join(known[:8]) + (" ..." if len(known) > 8 else "")
    return f"{asset.to_user_string()} has no cell {asked}, available: {shown}"


def _made_from(
    graph: Any, key: dg.AssetKey, parent: dg.AssetKey, cells: set[Partition] | None
) -> set[Partition] | None:
    if cells is None or not graph.get(parent).is_partitioned:
        return None
    inputs: set[Partition] = set()
    for cell in cells:
        inputs |= set(
            graph.get_parent_partition_keys_for_child(cell, parent, key).partitions_subset.get_partition_keys()
        )
    return inputs


def _add(wanted: Selected, key: dg.AssetKey, cells: set[Partition] | None) -> None:
    before = wanted.get(key, set())
    wanted[key] = None if before is None or cells is None else before | cells


def expected(
    graph: Any, stale: Mapping[dg.AssetKey, Collection[Mapping[str, str]]], cells: Mapping[dg.AssetKey, Collection[Any]]
) -> dict[str, int]:
    """Number of cells to compute per asset: those stale now, and those downstream of them.

    This is an upper bound. A cell that comes out with the same content leaves everything downstream fresh.

    Args:
        graph: the asset graph.
        stale: partitions (dimension -> key) of each asset that are missing or stale now, in graph order.
        cells: all partitions of each asset.
    """
    due: dict[dg.AssetKey, list[Mapping[str, str]]] = {}
    for key, partitions in cells.items():
        stale_now = {frozenset(partition.items()) for partition in stale[key]}
        reached = []
        for parent in graph.get(key).parent_keys:
            shared = _shared(due.get(parent, ()), partitions)
            changing = {tuple(partition.get(name) for name in shared) for partition in due.get(parent, ())}
            reached.append((shared, changing))
        due[key] = [
            partition
            for partition in partitions
            if frozenset(partition.items()) in stale_now
            or any(tuple(partition.get(name) for name in shared) in changing for shared, changing in reached)
        ]
    return {key.to_user_string(): len(partitions) for key, partitions in due.items()}


def _shared(upstream: Collection[Mapping[str, str]], downstream: Collection[Mapping[str, str]]) -> list[str]:
    """The dimensions that both assets have."""
    return sorted(next(iter(upstream), {}).keys() & next(iter(downstream), {}).keys())
