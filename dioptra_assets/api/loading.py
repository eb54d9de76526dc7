"""Loading assets in Python: notebooks, scripts, any folder, no Dagster process.

>>> import dioptra_assets as da
>>> da.load("digits/adversarial_set", architecture="le_net", attack="fgm_0.3")  # doctest: +SKIP
>>> da.load("digits/evasion_metrics")  # every cell as one table  # doctest: +SKIP
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import pandas as pd

from dioptra_assets.api.submission import Job, get_job_by_id, submit_job
from dioptra_assets.assets.python_values import Report, value_of
from partitions.entries import ExperimentError
from resources import settings, tables
from resources.claims import keep_to_claim
from resources.instance import home_instance
from resources.store import Cell, CellStore, MissingCellError, StoredCell, missing_message

if TYPE_CHECKING:
    from dioptra_assets.runs.launch import Launched

__all__ = [
    "Job",
    "Report",
    "catalog",
    "cells",
    "get_job_by_id",
    "load",
    "materialize",
    "submit_job",
    "tracking_uri",
]
ANY: list[str] = []  # stands for the keys of a dynamic dimension, which are added on demand
CELL_COLUMNS = ["asset", "kind", "data_version", "created", "bytes", "run_id"]


def load(asset: str, **partition: str) -> Any:
    """The value of an asset.

    Args:
        asset: key with slashes, e.g. `digits/model`.
        partition: dimension -> key, e.g. `architecture="le_net"`. Of a table, dimensions may be left out: all cells
            that exist are then given as one table, with a column for each dimension.

    Returns:
        An image set, a Keras model, a table (`pandas.DataFrame`), a config (typed) or a report.

    Raises:
        MissingCellError: when it has not been materialized; says which command makes it, or what it is not called.
        DamagedCellError: when what is stored is not what was written.
        LookupError: when several cells, which are no tables, are asked for.
    """
    store = CellStore(settings.store_url())
    wanted = Cell(asset, partition)
    stored = store.find(wanted, check=True)
    # A path names no dimensions, so a wrong one can lead to a cell.
    if stored and (stored.manifest.asset, stored.manifest.partition) == (asset, partition):
        return value_of(stored)
    present = _cells(store, asset)
    matching = [cell for cell in present if cell.asset == asset and partition.items() <= cell.partition.items()]
    if not matching:
        paths = [cell.path for cell in present]
        beside = f"; materialized are {', '.join(paths[:5])}{' ...' if len(paths) > 5 else ''}" if paths else ""
        raise MissingCellError(f"{_why_missing(wanted)}{beside}")
    opened = [store.open(cell) for cell in matching]
    if any(stored.manifest.kind != tables.KIND for stored in opened):
        dimensions = ", ".join(f"{name}=" for name in sorted(set(matching[0].partition) - set(partition)))
        raise LookupError(
            f"{asset} has {len(matching)} cells, name one: {dimensions} of {[c.path for c in matching[:10]]}"
        )
    return pd.concat([_with_dimensions(stored) for stored in opened], ignore_index=True)


def gates(experiment: str, version: str | None = None) -> pd.DataFrame:
    """Whether the stored numbers of an experiment reach what its gates ask of them.

    Args:
        experiment: its name.
        version: `NAME@VERSION` of a registered model, to judge that one alone; else every model of the experiment and
            every version that it has met.

    Returns:
        One row per gate and cell: `rule`, `severity`, `architecture`, `attack`, `metric`, `value` with its 95 %
        interval `low` to `high`, `n`, `limit`, `against` (the version it is held against), `status` (passed, failed, or
        not judged), `why` it was not, and `passed`. Numbers that are missing, stale, or failed their sanity checks are
        not judged.

    Raises:
        UnknownExperimentError: when there is no such experiment.
        LookupError: when the experiment has not met the version.
        DamagedCellError: when a stored table is not what was written.
    """
    from dioptra_assets.api.gate_verdicts import verdicts
    from dioptra_assets.definitions import defs, experiment_spec

    spec = experiment_spec(experiment)
    with home_instance() as instance, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return verdicts(spec, defs(), instance=instance, store=CellStore(settings.store_url()), version=version)


def cells(asset: str) -> pd.DataFrame:
    """The cells of an asset that have been materialized, one row per cell.

    Args:
        asset: key with slashes; an experiment's name gives all cells of the experiment.

    Returns:
        `asset`, a column for each dimension, `kind`, `data_version`, `created` (UTC), `bytes` and `run_id`.

    Raises:
        LookupError: when neither an experiment nor an asset is called so.
    """
    store = CellStore(settings.store_url())
    rows: list[dict[str, Any]] = []
    present = _cells(store, asset)
    if not present:
        _refuse_unknown(asset.strip("/"), store)
    for cell in present:
        manifest = store.open(cell).manifest
        size = sum(record.size for record in manifest.files.values())
        facts = {"kind": manifest.kind, "data_version": manifest.data_version, "created": manifest.created}
        rows.append({"asset": cell.asset, **cell.partition, **facts, "bytes": size, "run_id": manifest.run_id})
    return pd.DataFrame(rows, columns=None if rows else CELL_COLUMNS)


def catalog() -> pd.DataFrame:
    """The assets that have been materialized: `asset`, `kind`, `dimensions` and the number of `cells`."""
    store = CellStore(settings.store_url())
    present = _cells(store, "")
    counts = Counter(cell.asset for cell in present)
    first = {cell.asset: cell for cell in reversed(present)}
    return pd.DataFrame(
        [
            {"asset": asset, "kind": store.open(cell).manifest.kind}
            | {"dimensions": ", ".join(sorted(cell.partition)), "cells": counts[asset]}
            for asset, cell in sorted(first.items())
        ],
        columns=["asset", "kind", "dimensions", "cells"],
    )


def materialize(
    experiment: str,
    log: Callable[[str], None] = print,
    *,
    assets: Collection[str] = (),
    cells: Collection[str] = (),
) -> "Launched":
    """Compute every cell of an experiment that is missing or stale, in this process.

    Args:
        experiment: its name, e.g. `digits`.
        log: gets a line for each asset.
        assets: only these and what they are made from, e.g. `["model"]`; `"model+"` is also what is made from it.
        cells: only these and what they are made from, e.g. `["le_net|fgm_0.3"]`; `*` stands for anything.

    Returns:
        Which cells were computed, failed or skipped, and how many were up to date.

    Raises:
        UnknownExperimentError: when there is no such experiment, or its cells are added on demand by jobs.
        ClaimedError: when the experiment is another checkout's, and is declared otherwise there.
        SelectionError: when the experiment has no such asset or cell.
        ExperimentError: when the file of the experiment is wrong.
    """
    from dioptra_assets.definitions import defs, experiment_spec
    from dioptra_assets.runs.launch import UnknownExperimentError, materialize_experiment
    from dioptra_assets.runs.selection import Selection

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with warnings.catch_warnings(), home_instance() as instance:
        warnings.simplefilter("ignore")
        store = CellStore(settings.store_url())
        # Each step looks for itself; here it is known before any begins.
        with suppress(UnknownExperimentError):
            spec = experiment_spec(experiment)
            if not spec.dynamic:
                keep_to_claim(store, experiment, spec.folder, spec.digest)
        return materialize_experiment(
            defs(), experiment, instance=instance, store=store, log=log, only=Selection(assets, cells)
        )


def tracking_uri() -> str:
    """Where MLflow keeps the runs: the value for `MLFLOW_TRACKING_URI`."""
    return settings.tracking_uri()


def _cells(store: CellStore, prefix: str) -> list[Cell]:
    return store.cells(prefix.strip("/"))


def _refuse_unknown(name: str, store: CellStore) -> None:
    """Refuse a name that belongs to no experiment, no asset and nothing in the store."""
    try:
        declared = set(_dimensions(name))
    except Exception:  # noqa: BLE001 - a wrong experiment file must not hide what is stored
        return
    known = declared | {cell.asset for cell in _cells(store, "")}
    names = {"/".join(asset.split("/")[:depth]) for asset in known for depth in range(1, asset.count("/") + 2)}
    if name and name not in names:
        near = get_close_matches(name, names, n=3) or sorted(asset for asset in names if "/" not in asset)
        raise LookupError(f"there is no experiment and no asset {name!r}, available: {', '.join(near)}")


def _why_missing(cell: Cell) -> str:
    """Why a cell cannot be loaded: it has not been computed, or no experiment has a cell of that name."""
    try:
        dimensions = _dimensions(cell.asset)
    except ExperimentError as error:
        return f"{cell} has not been materialized, and its experiment cannot be loaded: {error}"
    except Exception:  # noqa: BLE001 - a wrong experiment file must not hide that a cell is missing
        return missing_message(cell)
    if wrong := _wrong_name(cell, dimensions):
        return wrong
    allowed = dimensions[cell.asset]
    if set(cell.partition) == set(allowed):
        return missing_message(cell)
    dynamic = any(keys is ANY for keys in allowed.values())
    command = "run ENTRY_POINT" if dynamic else f"materialize {cell.asset.partition('/')[0]}"
    return f"no cell of {cell} has been materialized: `dioptra-assets {command}` makes them"


def _wrong_name(cell: Cell, dimensions: Mapping[str, Mapping[str, list[str]]]) -> str | None:
    """The part of a cell's name that no experiment has, and what is available instead."""
    experiments = sorted({asset.partition("/")[0] for asset in dimensions})
    if (experiment := cell.asset.partition("/")[0]) not in experiments:
        near = get_close_matches(experiment, experiments, n=3) or experiments
        return f"there is no experiment {experiment!r}, available: {', '.join(near)}"
    if cell.asset not in dimensions:
        near = get_close_matches(cell.asset, dimensions, n=3) or sorted(dimensions)
        return f"no experiment has an asset {cell.asset!r}, available: {', '.join(near)}"
    allowed = dimensions[cell.asset]
    for dimension, key in cell.partition.items():
        if dimension not in allowed:
            return f"{cell.asset} has no dimension {dimension!r}, available: {', '.join(allowed) or 'none'}"
        if allowed[dimension] is not ANY and key not in allowed[dimension]:
            return f"{cell.asset} has no {dimension} {key!r}, available: {', '.join(allowed[dimension])}"
    return None


def _dimensions(asked: str) -> dict[str, dict[str, list[str]]]:
    """Asset -> dimension -> keys, for every asset of every experiment; ANY for a dynamic dimension.

    Raises:
        ExperimentError: when the file of the experiment that is asked for is wrong.
    """
    from dioptra_assets.assets.cell_context import DIMENSIONS
    from dioptra_assets.broken_experiments import mistakes, refuse_broken
    from dioptra_assets.definitions import defs
    from partitions.definitions import is_dynamic
    from partitions.keys import partition_of

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = defs().resolve_asset_graph()
    keys_of: dict[str, dict[str, list[str]]] = {}
    refuse_broken(graph, asked.partition("/")[0])
    broken = mistakes(graph)
    for asset in graph.get_all_asset_keys():
        if asset.path[0] in broken:
            continue
        names, definition = tuple(graph.get(asset).metadata[DIMENSIONS]), graph.get(asset).partitions_def
        if is_dynamic(definition):
            keys_of[asset.to_user_string()] = dict.fromkeys(names, ANY)
            continue
        cells = [partition_of(names, key) for key in definition.get_partition_keys()] if definition else []
        keys_of[asset.to_user_string()] = {name: list(dict.fromkeys(cell[name] for cell in cells)) for name in names}
    return keys_of


def _with_dimensions(stored: StoredCell) -> pd.DataFrame:
    table = tables.read_table(stored)
    for position, dimension in enumerate(sorted(stored.cell.partition)):
        if dimension not in table:
            table.insert(position, dimension, stored.cell.partition[dimension])
    return table
