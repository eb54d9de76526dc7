"""Materialize an experiment from this process: everything missing or stale, in graph order.

The UI, `dg launch` and backfills do the same through Dagster's launcher. Here one process leads the runs and, unless
another executor is set, does all the work. TensorFlow is imported once, and no web server or daemon is needed.
"""

import statistics
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import dagster as dg

from dioptra_assets import progress
from dioptra_assets.assets.cell_context import DIMENSIONS
from dioptra_assets.assets.ui_metadata import MLFLOW_RUN_ID
from dioptra_assets.broken_experiments import refuse_broken
from dioptra_assets.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    ReconstructableRepository,
    partition_loading_context,
)
from dioptra_assets.runs.interrupts import closing, noticed, saying
from dioptra_assets.runs.origin import MODULE, location_of, of_location
from dioptra_assets.runs.orphans import clear_leftovers, end_led_runs, leader
from dioptra_assets.runs.selection import EVERYTHING, Selected, Selection, expected, select
from dioptra_assets.runs.staleness import stale_cells
from dioptra_assets.runs.step_output import to_the_log_alone
from dioptra_assets.runs.tell_mlflow import tell_mlflow
from partitions.definitions import is_dynamic
from partitions.keys import partition_key_of, partition_of
from partitions.ranges import ranges
from resources.executors.backfills import cells_per_run
from resources.executors.choice import engine
from resources.full_disk import no_room
from resources.store import Cell, CellStore
from resources.tracking.resource import tracking_of
from resources.user import user_name, user_tags

# Dagster's console log is shown on the run's page in the UI. Here it would bury the lines that matter.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

# How often to check what other processes have computed.
COUNT_SECONDS = 2.0


class UnknownExperimentError(LookupError):
    """No experiment has that name, or it declares no cells."""


@dataclass(repr=False)
class Launched:
    """Result of :func:`materialize_experiment`.

    Attributes:
        computed: cells that were computed.
        failed: cells that failed, with the reason. The traceback is in the log of the run.
        skipped: cells that were not tried, because one of their inputs failed.
        fresh: number of cells that were already up to date.
    """

    computed: list[Cell] = field(default_factory=list)
    failed: dict[Cell, str] = field(default_factory=dict)
    skipped: list[Cell] = field(default_factory=list)
    fresh: int = 0

    def __repr__(self) -> str:
        """Counts, and the reasons for failures. The cells themselves are in the attributes."""
        said = [
            f"{len(self.computed)} cells computed",
            f"{self.fresh} were up to date",
            *([f"{len(self.failed)} failed"] if self.failed else []),
            *([f"{len(self.skipped)} not tried"] if self.skipped else []),
        ]
        return "\n".join([", ".join(said), *(f"{cell}: {why}" for cell, why in self.failed.items())])

    def _repr_html_(self) -> str:
        counts: dict[str, list[int]] = {}
        for column, cells in enumerate((self.computed, self.failed, self.skipped)):
            for cell in cells:
                counts.setdefault(cell.asset, [0, 0, 0])[column] += 1
        cells = "".join(
            "".join([f"<tr><td>{escape(asset)}</td>", *(f"<td>{count or ''}</td>" for count in row), "</tr>"])
            for asset, row in counts.items()
        )
        head = "<tr><th>asset</th><th>computed</th><th>failed</th><th>not tried</th></tr>" if counts else ""
        said = escape(repr(self)).replace("\n", "<br>")
        return f"<p>{said}</p><table>{head}{cells}</table>"


class CellFailedError(RuntimeError):
    """A cell could not be computed. The message names the cell and the reason."""


@dataclass(frozen=True)
class Made:
    """Result of :func:`materialize_cell`.

    Attributes:
        computed: whether the cell was missing or stale.
        mlflow_run_id: the MLflow run it was logged to, empty if there is none.
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
    module: str = MODULE,
    only: Selection = EVERYTHING,
) -> Launched:
    """Compute every missing or stale cell of an experiment. A failed cell does not stop the others.

    Args:
        defs: the code location.
        experiment: name of the experiment.
        instance: where runs and materializations are recorded.
        store: where values are kept.
        log: called with one line per asset.
        module: module in which other processes find the code location as `defs`, if the executor uses any.
        only: the assets and cells to compute, together with their inputs. Default: all.

    Raises:
        UnknownExperimentError: there is no such experiment, or its cells are created by jobs.
        ExperimentError: the experiment file is wrong.
        SelectionError: a selected asset or cell does not exist.
        StoreError: the store does not answer. Raised before anything is computed.
    """
    graph = defs.resolve_asset_graph()
    refuse_broken(graph, experiment)
    levels = graph.toposorted_asset_keys_by_level
    keys = [key for level in levels for key in sorted(level) if key.path[0] == experiment and _is_made(graph, key)]
    if not keys:
        known = sorted({key.path[0] for key in graph.get_all_asset_keys()})
        raise UnknownExperimentError(f"there is no experiment {experiment!r}, available: {', '.join(known)}")
    if any(key.path == [experiment, "model"] and is_dynamic(graph.get(key).partitions_def) for key in keys):
        raise UnknownExperimentError(
            f"experiment {experiment!r} declares no cells: add them with `dioptra-assets run ENTRY_POINT`"
        )
    job = defs.resolve_implicit_global_asset_job_def()
    store.check_answer()
    with partition_loading_context(dynamic_partitions_store=instance), leading(instance, module) as board:
        wanted = select(graph, keys, only)
        board.expected = _expected(graph, wanted, instance, store)
        board.remembered = _remembered(board.expected, instance)
        launched = _materialize(graph, job, wanted, instance=instance, store=store, log=log, module=module)
    tell_mlflow(tracking_of(defs.resources or {}), store, instance, log)
    return launched


@contextmanager
def leading(instance: dg.DagsterInstance, module: str = MODULE) -> Iterator[progress.Board]:
    """Lead runs of a code location from this process. An interrupt ends them all, and no further run begins.

    Yields the board that holds their progress.

    Raises:
        Interrupted, KeyboardInterrupt: a signal arrived, see :func:`dioptra_assets.runs.interrupts.noticed`.
    """
    with ExitStack() as stack:
        board = stack.enter_context(progress.board())
        check = stack.enter_context(noticed())
        stack.enter_context(saying(progress.kept))
        stack.enter_context(closing(lambda: end_led_runs(instance)))
        stack.enter_context(to_the_log_alone())
        stack.enter_context(of_location(instance, location_of(module)))
        _checks.append(check)
        try:
            yield board
            check()
        except BaseException as error:
            if not isinstance(error, Exception):
                end_led_runs(instance)
            elif full := no_room(error, Path(instance.root_directory)):
                raise full from None
            raise
        finally:
            _checks.remove(check)


# One check per nested launch in progress. Each raises if a signal has arrived.
_checks: list[Callable[[], None]] = []


def _materialize(
    graph: Any,
    job: dg.JobDefinition,
    wanted: Selected,
    *,
    instance: dg.DagsterInstance,
    store: CellStore,
    log: Callable[[str], None],
    module: str,
) -> Launched:
    launched = Launched()
    clear_leftovers(instance)
    for key, partitions in wanted.items():
        definition = graph.get(key).partitions_def
        cells = cells_of(graph, key, partitions)
        todo = to_compute(graph, key, cells, instance, store)
        launched.fresh += len(cells) - len(todo)
        upstream = {ancestor.to_user_string() for ancestor in graph.get_ancestor_asset_keys(key)}
        failed = [cell for cell in launched.failed if cell.asset in upstream]
        blocked = {
            partition: cell for partition, cell in todo.items() if any(_depends(cell, other) for other in failed)
        }
        launched.skipped += blocked.values()
        todo = {partition: cell for partition, cell in todo.items() if partition not in blocked}
        progress.begin(key.to_user_string(), len(todo))
        if todo:
            fresh = f", {len(cells) - len(todo):,} are up to date" if len(cells) > len(todo) else ""
            log(f"{key.to_user_string()}: computing {len(todo):,} {'cell' if len(todo) == 1 else 'cells'}{fresh}")
        for tags, chosen in _runs(definition, list(todo)):
            result = _execute(job, key, instance=instance, tags=tags, module=module)
            if not result.success:
                clear_leftovers(instance)  # a step whose worker died still holds its slot in the pool
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
    module: str = MODULE,
) -> Made:
    """Compute one cell if it is missing or stale. Its inputs must exist.

    Args:
        defs: the code location.
        cell: the cell.
        instance: where runs and materializations are recorded.
        store: where values are kept.
        module: see :func:`materialize_experiment`.

    Raises:
        CellFailedError: the cell failed.
    """
    with leading(instance, module):
        return _materialize_cell(defs, cell, instance=instance, store=store, module=module)


def _materialize_cell(
    defs: dg.Definitions, cell: Cell, *, instance: dg.DagsterInstance, store: CellStore, module: str
) -> Made:
    key = dg.AssetKey(cell.asset.split("/"))
    partition = partition_key_of(cell.partition)
    clear_leftovers(instance)
    computed = bool(to_compute(defs.resolve_asset_graph(), key, {partition: cell}, instance, store))
    progress.begin(cell.asset, int(computed))
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
    metadata = event.metadata if event else {}
    logged = metadata.get(MLFLOW_RUN_ID) or metadata.get("MLflow run id")  # its name up to release 0.1
    return Made(computed, str(logged.value) if logged else "")


def _is_made(graph: Any, key: dg.AssetKey) -> bool:
    """Whether runs compute an asset. Verdicts on registered versions are reported by a sensor instead."""
    return graph.get(key).is_materializable


def _execute(
    job: dg.JobDefinition, key: dg.AssetKey, *, instance: dg.DagsterInstance, tags: dict[str, str], module: str
) -> dg.ExecuteInProcessResult | dg.JobExecutionResult:
    """Run one asset once: in this process, or led by it while another executor does the work.

    Raises:
        Interrupted, KeyboardInterrupt: a signal arrived during the run. Dagster reports it as a failed step.
    """
    result = _executed(job, key, instance=instance, tags=tags | leader() | user_tags(user_name()), module=module)
    for check in _checks:
        check()
    return result


def _executed(
    job: dg.JobDefinition, key: dg.AssetKey, *, instance: dg.DagsterInstance, tags: dict[str, str], module: str
) -> dg.ExecuteInProcessResult | dg.JobExecutionResult:
    if engine() == "in_process":
        return job.execute_in_process(
            run_config=QUIET, asset_selection=[key], instance=instance, tags=tags, raise_on_error=False
        )
    repository = ReconstructableRepository.for_module(module, "defs")
    with _counting_what_others_compute(key, instance):
        return dg.execute_job(
            repository.get_reconstructable_job(job.name),
            instance=instance,
            run_config=QUIET,
            tags=tags,
            asset_selection=[key],
            raise_on_error=False,
        )


@contextmanager
def _counting_what_others_compute(key: dg.AssetKey, instance: dg.DagsterInstance) -> Iterator[None]:
    """Report the progress of a run whose cells are computed by other processes, from Dagster's event log."""
    over, before = threading.Event(), _last_event(key, instance)

    def count() -> None:
        seen = before
        while not over.wait(COUNT_SECONDS):
            wanted = dg.AssetRecordsFilter(key, after_storage_id=seen)
            for record in instance.fetch_materializations(wanted, limit=1000, ascending=True).records:
                seen = record.storage_id
                progress.ended()

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _last_event(key: dg.AssetKey, instance: dg.DagsterInstance) -> int:
    records = instance.fetch_materializations(key, limit=1).records
    return records[0].storage_id if records else 0


def cells_of(graph: Any, key: dg.AssetKey, wanted: Collection[str | None] | None) -> dict[str | None, Cell]:
    """The wanted cells (None: all) by partition key, in the order of the partitions."""
    definition, dimensions = graph.get(key).partitions_def, tuple(graph.get(key).metadata[DIMENSIONS])
    keys = definition.get_partition_keys() if definition else [None]
    return {
        partition: Cell(key.to_user_string(), partition_of(dimensions, partition))
        for partition in keys
        if wanted is None or partition in wanted
    }


def _expected(graph: Any, wanted: Selected, instance: dg.DagsterInstance, store: CellStore) -> dict[str, int]:
    """Number of cells to compute per asset, as far as it is known beforehand."""
    cells = {key: cells_of(graph, key, partitions) for key, partitions in wanted.items()}
    stale = {key: to_compute(graph, key, every, instance, store).values() for key, every in cells.items()}
    return expected(
        graph,
        {key: [cell.partition for cell in due] for key, due in stale.items()},
        {key: [cell.partition for cell in every.values()] for key, every in cells.items()},
    )


def _remembered(assets: Mapping[str, int], instance: dg.DagsterInstance) -> dict[str, float]:
    """Recent seconds per cell, for each asset that has cells to compute."""
    remembered = {}
    for asset, count in assets.items():
        if count:
            key = dg.AssetKey(asset.split("/"))
            events = [record.asset_materialization for record in instance.fetch_materializations(key, limit=9).records]
            seconds = [event.metadata["seconds"].value for event in events if event and "seconds" in event.metadata]
            if seconds:
                remembered[asset] = statistics.median(float(str(value)) for value in seconds)
    return remembered


def to_compute(
    graph: Any, key: dg.AssetKey, cells: Mapping[str | None, Cell], instance: dg.DagsterInstance, store: CellStore
) -> dict[str | None, Cell]:
    """The cells that were never materialized, are stale, or are not in the store."""
    stale = stale_cells(graph, key, list(cells), instance)
    stored = store.found([cell for partition, cell in cells.items() if partition not in stale])
    return {partition: cell for partition, cell in cells.items() if partition in stale or cell not in stored}


def _reasons(result: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> dict[str, str]:
    return reasons_in(result.all_events)


def reasons_in(events: Iterable[dg.DagsterEvent]) -> dict[str, str]:
    """Why a run failed, by cell path. The path is empty if the run had only one cell."""
    reasons: dict[str, str] = {}
    for event in events:
        if event.is_step_failure:
            failure = event.step_failure_data
            if failure.user_failure_data:
                said = failure.user_failure_data
                reasons |= {path: str(value.value) for path, value in said.metadata.items()}
                if not said.metadata and said.description:
                    reasons[""] = said.description
            elif failure.error:
                # Dagster wraps the error of a cell in one of its own.
                reasons[""] = (failure.error.cause or failure.error).message.strip()
        elif event.is_job_failure and not reasons:
            # Not a step failed, but the executor, or the process that ran it was killed.
            error = event.event_specific_data and event.job_failure_data.error
            said = error.message if error else event.message or ""
            reasons[""] = said.partition("\n\nStack Trace:")[0].strip()
    return reasons


def failure_reason(result: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> str:
    """Why a run failed, in one sentence."""
    reasons = _reasons(result)
    return "; ".join(reasons.values()) or f"see run {result.run_id}"


def _depends(cell: Cell, other: Cell) -> bool:
    """Whether a cell depends on a failed upstream cell: one with no partition, or with the same key per dimension.

    A cell that reads all partitions of the failed asset is still computed from the others, and lists what is missing.
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
