"""Which cells a launch looks at, and how many of them it is expected to compute."""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import dagster as dg

Partition = str | None
# Asset -> the partitions that are wanted; None stands for all of them.
Selected = dict[dg.AssetKey, set[Partition] | None]


class SelectionError(LookupError):
    """A selection names no asset or cell; the message says which there are."""


def select(graph: Any, keys: Sequence[dg.AssetKey], assets: Collection[str], cells: Collection[str]) -> Selected:
    """The cells that were asked for, and those that they are made from.

    Args:
        graph: the asset graph.
        keys: the assets of an experiment, each after those it is made from.
        assets: names with or without the experiment's, `model` or `digits/model`; with a `+` behind it, what is made
            from it too. Without any, all.
        cells: partition keys, in which `*` stands for anything: `le_net|fgm_0.3`, `*|fgm_*`. Without any, all.

    Raises:
        SelectionError: an asset or a cell that there is not.
    """
    experiment = keys[0].path[0]
    named = [key for text in assets for key in _named(graph, keys, experiment, text)] or list(keys)
    if not cells:
        wanted: Selected = dict.fromkeys(named, None)
    else:
        wanted = {key: found for key in named if (found := _matching(graph, key, cells))}
        if not wanted:
            raise SelectionError(_no_such_cell(graph, named, cells))
    for key in reversed(keys):
        if key in wanted:
            for parent in graph.get(key).parent_keys:
                if parent in keys:
                    _add(wanted, parent, _made_from(graph, key, parent, wanted[key]))
    return {key: wanted[key] for key in keys if key in wanted}


def _named(graph: Any, keys: Sequence[dg.AssetKey], experiment: str, text: str) -> list[dg.AssetKey]:
    found = re.fullmatch(r"([^+]+)(\+*)", text)
    name = found[1] if found else text
    key = dg.AssetKey(name.split("/") if name.split("/")[0] == experiment else [experiment, *name.split("/")])
    if found is None or key not in keys:
        known = ["/".join(one.path[1:]) for one in keys]
        near = get_close_matches("/".join(key.path[1:]), known, n=3) or known
        raise SelectionError(f"experiment {experiment!r} has no asset {text!r}, it has {', '.join(near)}")
    if not found[2]:
        return [key]
    below = {one for one in keys if key in graph.get_ancestor_asset_keys(one)}
    return [key, *(one for one in keys if one in below)]


def _matching(graph: Any, key: dg.AssetKey, cells: Collection[str]) -> set[Partition]:
    definition = graph.get(key).partitions_def
    names = [str(partition) for partition in definition.get_partition_keys()] if definition else []
    patterns = [re.compile(fnmatch.translate(cell.replace("[", "[[]"))) for cell in cells]
    return {name for name in names if any(pattern.match(name) for pattern in patterns)}


def _no_such_cell(graph: Any, named: Sequence[dg.AssetKey], cells: Collection[str]) -> str:
    asset = next((key for key in named if graph.get(key).partitions_def), None)
    asked = ", ".join(repr(cell) for cell in cells)
    if asset is None:
        return f"{named[0].to_user_string()} has one cell without a name: leave out --cell {asked}"
    known = [str(name) for name in graph.get(asset).partitions_def.get_partition_keys()]
    shown = ", ".join(known[:8]) + (" ..." if len(known) > 8 else "")
    return f"{asset.to_user_string()} has no cell {asked}, it has {shown}"


def _made_from(
    graph: Any, key: dg.AssetKey, parent: dg.AssetKey, cells: set[Partition] | None
) -> set[Partition] | None:
    if cells is None or not graph.get(parent).is_partitioned:
        return None
    found: set[Partition] = set()
    for cell in cells:
        found |= set(
            graph.get_parent_partition_keys_for_child(cell, parent, key).partitions_subset.get_partition_keys()
        )
    return found


def _add(wanted: Selected, key: dg.AssetKey, cells: set[Partition] | None) -> None:
    before = wanted.get(key, set())
    wanted[key] = None if before is None or cells is None else before | cells


def expected(
    graph: Any, stale: Mapping[dg.AssetKey, Collection[Mapping[str, str]]], cells: Mapping[dg.AssetKey, Collection[Any]]
) -> dict[str, int]:
    """How many cells of each asset will be computed: those that are stale, and those made from them.

    One that is computed again with the same content leaves what is made from it as it is, so there may be fewer.

    Args:
        graph: the asset graph.
        stale: asset -> the partitions, dimension -> key, that are missing or stale now; in the order of the graph.
        cells: asset -> all its partitions.
    """
    due: dict[dg.AssetKey, list[Mapping[str, str]]] = {}
    for key, partitions in cells.items():
        taken = {frozenset(one.items()) for one in stale[key]}
        reached = []
        for parent in graph.get(key).parent_keys:
            shared = _shared(due.get(parent, ()), partitions)
            reached.append((shared, {tuple(one.get(name) for name in shared) for one in due.get(parent, ())}))
        due[key] = [
            one
            for one in partitions
            if frozenset(one.items()) in taken
            or any(tuple(one.get(name) for name in shared) in made for shared, made in reached)
        ]
    return {key.to_user_string(): len(partitions) for key, partitions in due.items()}


def _shared(made: Collection[Mapping[str, str]], partitions: Collection[Mapping[str, str]]) -> list[str]:
    first, own = next(iter(made), {}), next(iter(partitions), {})
    return sorted(first.keys() & own.keys())
