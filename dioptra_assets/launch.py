"""Materializing an experiment from here: whatever is missing or stale, in the order of the graph.

The UI, `dg launch` and backfills do the same through Dagster's launcher. Here one process leads, and unless another
executor was chosen does it all, so TensorFlow is imported once, and neither a web server nor a daemon is needed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from dioptra_assets.assets.cells import DIMENSIONS, is_dynamic
from dioptra_assets.backlog import tell_mlflow
from dioptra_assets.leftovers import clear_leftovers, leader
from dioptra_assets.staleness import stale_cells
from partitions.keys import partition_key_of, partition_of
from partitions.ranges import ranges
from resources.cells import Cell, CellStore
from resources.executors import cells_per_run, engine
from resources.user import user_name, user_tags

# Dagster's own console log stands in the run's page in the UI; here it would drown the lines that matter.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class UnknownExperimentError(LookupError):
    """There is no experiment of that name, or it declares no cells."""


@dataclass
class Launched:
    """What :func:`materialize_experiment` did.

    Attributes:
        computed: cells that were computed.
        failed: cells that failed, and why; the traceback stands in the log of the run.
        skipped: cells that were not tried, because a cell they are made from failed.
        fresh: how many cells were there and up to date.
    """

    computed: list[Cell] = field(default_factory=list)
    failed: dict[Cell, str] = field(default_factory=dict)
    skipped: list[Cell] = field(default_factory=list)
    fresh: int = 0


class CellFailedError(RuntimeError):
    """A cell could not be computed; the message says which and why."""


@dataclass(frozen=True)
class Made:
    """What :func:`materialize_cell` did.

    Attributes:
        computed: whether the cell was missing or stale.
        mlflow_run_id: the MLflow run that it was logged to, empty where there is none.
    """

    computed: bool
    mlflow_run_id: str = ""


def materialize_experiment(
    defs: dg.Definitions,
    experiment: str,
    *,
    instance: dg.DagsterInstance,
    store: CellStore,
    log: Callable[[str], None] = lambda line: None,
    module: str = "dioptra_assets.definitions",
) -> Launched:
    """Compute every cell of an experiment that is missing or stale; a failed cell does not stop the others.

    Args:
        defs: the code location.
        experiment: the name of the experiment.
        instance: where runs and materializations are recorded.
        store: where values are kept.
        log: gets a line for each asset.
        module: where other processes find the code location, as `defs`, when the executor that was chosen has any.

    Raises:
        UnknownExperimentError: when there is no such experiment, or its cells come as jobs ask for them.
        StoreError: when the store does not answer, before anything is computed.
    """
    graph = defs.resolve_asset_graph()
    levels = graph.toposorted_asset_keys_by_level
    keys = [key for level in levels for key in sorted(level) if key.path[0] == experiment]
    if not keys:
        known = sorted({key.path[0] for key in graph.get_all_asset_keys()})
        raise UnknownExperimentError(f"there is no experiment {experiment!r}, there are {', '.join(known)}")
    if any(key.path == [experiment, "model"] and is_dynamic(graph.get(key).partitions_def) for key in keys):
        raise UnknownExperimentError(
            f"experiment {experiment!r} declares no cells: `dioptra-assets run ENTRY_POINT` adds each as asked"
        )
    job = defs.resolve_implicit_global_asset_job_def()
    store.check_answer()
    with partition_loading_context(dynamic_partitions_store=instance):
        launched = _materialize(graph, job, keys, instance=instance, store=store, log=log, module=module)
    tell_mlflow((defs.resources or {})["tracking"], store, instance, log)
    return launched


def _materialize(
    graph: Any,
    job: dg.JobDefinition,
    keys: Sequence[dg.AssetKey],
    *,
    instance: dg.DagsterInstance,
    store: CellStore,
    log: Callable[[str], None],
    module: str,
) -> Launched:
    launched = Launched()
    clear_leftovers(instance)
    for key in keys:
        definition = graph.get(key).partitions_def
        cells = _cells(key, definition, graph.get(key).metadata[DIMENSIONS])
        todo = _to_compute(graph, key, cells, instance, store)
        launched.fresh += len(cells) - len(todo)
        upstream = {ancestor.to_user_string() for ancestor in graph.get_ancestor_asset_keys(key)}
        in_the_way = [cell for cell in launched.failed if cell.asset in upstream]
        blocked = {
            partition: cell for partition, cell in todo.items() if any(_depends(cell, other) for other in in_the_way)
        }
        launched.skipped += blocked.values()
        todo = {partition: cell for partition, cell in todo.items() if partition not in blocked}
        if todo:
            log(f"{key.to_user_string()}: {len(todo)} of {len(cells)} cells")
        for tags, chosen in _runs(definition, list(todo)):
            result = _execute(job, key, instance=instance, tags=tags, module=module)
            if not result.success:
                clear_leftovers(instance)  # a step whose worker died has kept its place in the pool
            done = {event.partition for event in result.get_asset_materialization_events()}
            reasons = _reasons(result)
            for partition in chosen:
                cell = todo[partition]
                if partition in done:
                    launched.computed.append(cell)
                else:
                    launched.failed[cell] = reasons.get(cell.path) or reasons.get("") or f"see run {result.run_id}"
    return launched


def materialize_cell(
    defs: dg.Definitions,
    cell: Cell,
    *,
    instance: dg.DagsterInstance,
    store: CellStore,
    module: str = "dioptra_assets.definitions",
) -> Made:
    """Compute one cell where it is missing or stale; what it is made from must be there.

    Args:
        defs: the code location.
        cell: the cell.
        instance: where runs and materializations are recorded.
        store: where values are kept.
        module: see :func:`materialize_experiment`.

    Raises:
        CellFailedError: naming the cell and the reason.
    """
    key = dg.AssetKey(cell.asset.split("/"))
    partition = partition_key_of(cell.partition)
    clear_leftovers(instance)
    computed = bool(_to_compute(defs.resolve_asset_graph(), key, {partition: cell}, instance, store))
    if computed:
        job = defs.resolve_implicit_global_asset_job_def()
        tags = (
            {ASSET_PARTITION_RANGE_START_TAG: partition, ASSET_PARTITION_RANGE_END_TAG: partition} if partition else {}
        )
        result = _execute(job, key, instance=instance, tags=tags, module=module)
        if not result.success:
            reasons = _reasons(result)
            raise CellFailedError(f"{cell} failed: {reasons.get(cell.path) or reasons.get('') or result.run_id}")
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None), limit=1
    ).records
    event = records[0].asset_materialization if records else None
    logged = event.metadata.get("MLflow run id") if event else None
    return Made(computed, str(logged.value) if logged else "")


def _execute(
    job: dg.JobDefinition, key: dg.AssetKey, *, instance: dg.DagsterInstance, tags: dict[str, str], module: str
) -> dg.ExecuteInProcessResult | dg.JobExecutionResult:
    """One run of one asset: in this process, or led by it while the executor that was chosen does the work."""
    tags = tags | leader() | user_tags(user_name())
    if engine() == "in_process":
        return job.execute_in_process(
            run_config=QUIET, asset_selection=[key], instance=instance, tags=tags, raise_on_error=False
        )
    repository = ReconstructableRepository.for_module(module, "defs")
    return dg.execute_job(
        repository.get_reconstructable_job(job.name),
        instance=instance,
        run_config=QUIET,
        tags=tags,
        asset_selection=[key],
        raise_on_error=False,
    )


def _cells(
    key: dg.AssetKey, definition: dg.PartitionsDefinition[str] | None, dimensions: Sequence[str]
) -> dict[str | None, Cell]:
    """Partition key -> cell, in the order of the partitions."""
    keys = definition.get_partition_keys() if definition else [None]
    return {partition: Cell(key.to_user_string(), partition_of(tuple(dimensions), partition)) for partition in keys}


def _to_compute(
    graph: Any, key: dg.AssetKey, cells: Mapping[str | None, Cell], instance: dg.DagsterInstance, store: CellStore
) -> dict[str | None, Cell]:
    """The cells that Dagster does not know, or knows to be stale, or that the store does not hold."""
    stale = stale_cells(graph, key, list(cells), instance)
    held = store.found([cell for partition, cell in cells.items() if partition not in stale])
    return {partition: cell for partition, cell in cells.items() if partition in stale or cell not in held}


def _reasons(result: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> dict[str, str]:
    """Why a run failed: by path of the cell where it had several, else under no path."""
    reasons: dict[str, str] = {}
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            if failure.user_failure_data:
                said = failure.user_failure_data
                reasons |= {path: str(value.value) for path, value in said.metadata.items()}
                if not said.metadata and said.description:
                    reasons[""] = said.description
            elif failure.error:
                # Around the error of a cell Dagster puts one of its own.
                reasons[""] = (failure.error.cause or failure.error).message.strip()
        elif event.is_job_failure and event.job_failure_data.error and not reasons:
            # The executor failed, not a step.
            reasons[""] = event.job_failure_data.error.message.partition("\n\nStack Trace:")[0].strip()
    return reasons


def failure_reason(result: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> str:
    """Why a run failed, in a sentence."""
    reasons = _reasons(result)
    return "; ".join(reasons.values()) or f"see run {result.run_id}"


def _depends(cell: Cell, other: Cell) -> bool:
    """Whether a cell is made from a failed one further up: that has no partition, or the cell's in each dimension.

    What goes over all partitions of the failed cell's asset is made from the others, and says which were missing.
    """
    return other.partition.items() <= cell.partition.items()


def _runs(
    definition: dg.PartitionsDefinition[str] | None, todo: Sequence[str | None]
) -> Iterator[tuple[dict[str, str], list[str | None]]]:
    """Runs as a range of partitions each, few and large ones."""
    if definition is None:
        if todo:
            yield {}, list(todo)
        return
    two = isinstance(definition, dg.MultiPartitionsDefinition)
    parts = [part.partitions_def for part in definition.partitions_defs] if two else [definition]
    wanted = {tuple(str(partition).split("|")) for partition in todo}
    for cells in ranges([part.get_partition_keys() for part in parts], wanted, cells_per_run()):
        taken = ["|".join(cell) for cell in cells]
        yield {ASSET_PARTITION_RANGE_START_TAG: taken[0], ASSET_PARTITION_RANGE_END_TAG: taken[-1]}, [*taken]
