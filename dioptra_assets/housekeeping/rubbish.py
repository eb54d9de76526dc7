"""Find and remove what is no longer needed in the store, in MLflow and in Dagster's run history."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from dioptra_assets.housekeeping.verification import listed
from resources.store import (
    KEEP_SUPERSEDED,
    Cell,
    CellStore,
)

if TYPE_CHECKING:
    import dagster as dg


@dataclass
class Rubbish:
    """What :func:`clean` may remove.

    Attributes:
        cells: cells of entries that no experiment file declares any more.
        versions: (folder of a cell, version) pairs that are not served and older than any reader needs.
        mlflow_runs: ids of MLflow runs whose cells are not stored.
        dagster_runs: ids of old Dagster runs that failed or were canceled and made nothing.
        size: bytes they occupy in the store.
    """

    cells: list[Cell] = field(default_factory=list)
    versions: list[tuple[str, str]] = field(default_factory=list)
    mlflow_runs: list[str] = field(default_factory=list)
    dagster_runs: list[str] = field(default_factory=list)
    size: int = 0


def rubbish(store: CellStore, declared: dict[str, Collection[str] | None]) -> Rubbish:
    """Find the cells and versions that are no longer needed.

    Args:
        store: the store.
        declared: the cell paths that an experiment file declares for each asset, None if jobs create the cells. A
            stored asset of these experiments that is not listed belongs to a removed entry.
    """
    experiments = {asset.split("/")[0] for asset in declared}
    found = Rubbish()
    limit = f"{datetime.now(UTC) - KEEP_SUPERSEDED:%Y%m%dT%H%M%S}"
    for experiment in sorted(experiments):
        sizes = store.sizes_below(experiment)
        for cell in store.cells(experiment):
            keys = declared.get(cell.asset, ())
            if keys is not None and cell.path not in keys:
                found.cells.append(cell)
        gone = {cell.path for cell in found.cells}
        _, versions = listed(store, experiment)
        for folder, names in versions.items():
            served = store.version_of(folder)
            if served:
                found.versions += [(folder, one) for one in names if folder in gone or (one != served and one < limit)]
        removed = {f"{folder}/versions/{version}/" for folder, version in found.versions}
        found.size += sum(size for path, size in sizes.items() if any(path.startswith(one) for one in removed))
    return found


def old_runs(instance: "dg.DagsterInstance", age: timedelta) -> list[str]:
    """Ids of Dagster runs that failed long ago without making anything."""
    import dagster as dg

    ended = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    wanted = dg.RunsFilter(statuses=ended, updated_before=datetime.now(UTC) - age)
    found = []
    for record in instance.get_run_records(filters=wanted):
        run_id = record.dagster_run.run_id
        made = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, limit=1).records
        if not made:
            found.append(run_id)
    return found


def orphaned_mlflow_runs(client: Any, store: CellStore, found: Rubbish, experiments: Collection[str]) -> list[str]:
    """Ids of ended MLflow runs whose cell is not stored, or is to be removed."""
    gone = {cell.path for cell in found.cells}
    there = {cell.path for experiment in experiments for cell in store.cells(experiment)} - gone
    orphans = []
    for experiment in sorted(experiments):
        known, token = client.get_experiment_by_name(experiment), None
        while known:
            page = client.search_runs([known.experiment_id], page_token=token)
            for run in page:
                asset, key = run.data.tags.get("asset"), run.data.tags.get("partition")
                path = "/".join([asset or "", *(key.split("|") if key else [])])
                if asset and path not in there and run.info.status != "RUNNING":
                    orphans.append(run.info.run_id)
            if not (token := page.token):
                break
    return orphans


def declared_cells(graph: Any, experiment: str = "") -> dict[str, Collection[str] | None]:
    """What the experiment files declare, as :func:`rubbish` takes it. Experiments with a wrong file are left out.

    Raises:
        ExperimentError: the file of the given experiment is wrong.
        UnknownExperimentError: there is no such experiment.
    """
    from dioptra_assets.assets.cell_context import DIMENSIONS
    from dioptra_assets.broken_experiments import mistakes, refuse_broken
    from dioptra_assets.runs.launch import UnknownExperimentError
    from partitions.definitions import is_dynamic
    from partitions.keys import partition_of

    refuse_broken(graph, experiment)
    broken = mistakes(graph)
    declared: dict[str, Collection[str] | None] = {}
    for key in graph.get_all_asset_keys():
        definition, asset = graph.get(key).partitions_def, key.to_user_string()
        if (experiment and key.path[0] != experiment) or key.path[0] in broken:
            continue
        if is_dynamic(definition):
            declared[asset] = None
            continue
        names, keys = (
            tuple(graph.get(key).metadata[DIMENSIONS]),
            definition.get_partition_keys() if definition else [None],
        )
        declared[asset] = {Cell(asset, partition_of(names, one)).path for one in keys}
    if not declared:
        known = ", ".join(sorted({key.path[0] for key in graph.get_all_asset_keys()}))
        raise UnknownExperimentError(f"there is no experiment {experiment!r}, available: {known}")
    return declared


def remove_rubbish(store: CellStore, found: Rubbish) -> None:
    """Remove cells and versions. Pointers go first, so that none leads to a version that is half removed."""
    for cell in found.cells:
        store.forget(cell)
    for folder, version in found.versions:
        store.remove_version(Cell(folder), version)
