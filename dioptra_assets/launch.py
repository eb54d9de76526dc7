"""Materializing an experiment in this process: whatever is missing or stale, in the order of the graph.

The UI, `dg launch` and backfills do the same through Dagster's launcher. Here one process does it all, so TensorFlow is
imported once, and neither a web server nor a daemon is needed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContext
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from dioptra_assets.assets.cells import DIMENSIONS
from partitions.keys import partition_of
from resources.cells import Cell, CellStore

# Dagster's own console log stands in the run's page in the UI; here it would drown the lines that matter.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class UnknownExperimentError(LookupError):
    """There is no experiment of that name."""


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


class _Loading(LoadingContext):
    """What Dagster's stale status asks for beside the instance: a place to keep what it has read."""

    def __init__(self, instance: dg.DagsterInstance):
        self._instance = instance
        self._loaders: dict[Any, Any] = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict[Any, Any]:
        return self._loaders


def materialize_experiment(
    defs: dg.Definitions,
    experiment: str,
    *,
    instance: dg.DagsterInstance,
    store: CellStore,
    log: Callable[[str], None] = lambda line: None,
) -> Launched:
    """Compute every cell of an experiment that is missing or stale; a failed cell does not stop the others.

    Args:
        defs: the code location.
        experiment: the name of the experiment.
        instance: where runs and materializations are recorded.
        store: where values are kept.
        log: gets a line for each asset.

    Raises:
        UnknownExperimentError: when there is no such experiment.
    """
    graph = defs.resolve_asset_graph()
    levels = graph.toposorted_asset_keys_by_level
    keys = [key for level in levels for key in sorted(level) if key.path[0] == experiment]
    if not keys:
        known = sorted({key.path[0] for key in graph.get_all_asset_keys()})
        raise UnknownExperimentError(f"there is no experiment {experiment!r}, there are {', '.join(known)}")
    job = defs.resolve_implicit_global_asset_job_def()
    launched = Launched()
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
            result = job.execute_in_process(
                run_config=QUIET, asset_selection=[key], instance=instance, tags=tags, raise_on_error=False
            )
            done = {event.partition for event in result.get_asset_materialization_events()}
            reasons = _reasons(result)
            for partition in chosen:
                cell = todo[partition]
                if partition in done:
                    launched.computed.append(cell)
                else:
                    launched.failed[cell] = reasons.get(cell.path) or reasons.get("") or f"see run {result.run_id}"
    return launched


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
    status = CachingStaleStatusResolver(instance, graph, _Loading(instance))
    return {
        partition: cell
        for partition, cell in cells.items()
        if status.get_status(key, partition) != StaleStatus.FRESH or store.find(cell) is None
    }


def _reasons(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Why a run failed: by path of the cell where it had several, else under no path."""
    reasons: dict[str, str] = {}
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            if failure.user_failure_data:
                reasons |= {path: str(value.value) for path, value in failure.user_failure_data.metadata.items()}
            elif failure.error:
                # Around the error of a cell Dagster puts one of its own.
                reasons[""] = (failure.error.cause or failure.error).message.strip()
    return reasons


def _depends(cell: Cell, other: Cell) -> bool:
    """Whether a cell is made from a failed one further up: that has no partition, or the cell's in each dimension.

    What goes over all partitions of the failed cell's asset is made from the others, and says which were missing.
    """
    return other.partition.items() <= cell.partition.items()


def _runs(
    definition: dg.PartitionsDefinition[str] | None, todo: Sequence[str | None]
) -> Iterator[tuple[dict[str, str], list[str | None]]]:
    """Runs as a range of partitions each: all of them in one, or else one for each neighbouring few."""
    if definition is None:
        if todo:
            yield {}, list(todo)
        return
    pending = [str(partition) for partition in definition.get_partition_keys() if partition in todo]
    while pending:
        taken = next(
            pending[:count]
            for count in range(len(pending), 0, -1)
            if sorted(definition.get_partition_keys_in_range(dg.PartitionKeyRange(pending[0], pending[count - 1])))
            == sorted(pending[:count])
        )
        tags = {ASSET_PARTITION_RANGE_START_TAG: taken[0], ASSET_PARTITION_RANGE_END_TAG: taken[-1]}
        yield tags, [*taken]
        pending = pending[len(taken) :]
