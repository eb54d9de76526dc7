"""Following the registry from here, without a daemon: what the sensor asks for is done in this process."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from dioptra_assets.registered_versions.announcing import announced
from dioptra_assets.registered_versions.registry import Seen
from dioptra_assets.registered_versions.runs_so_far import VERSIONS_TAG
from dioptra_assets.registered_versions.verdicts import Verdict
from dioptra_assets.registered_versions.watcher import Watcher
from dioptra_assets.runs.launch import QUIET
from dioptra_assets.runs.step_output import to_the_log_alone
from partitions.definitions import dynamic_dimension
from partitions.experiments import BRANCH, ExperimentSpec
from resources.store import CellStore
from resources.tracking.resource import Tracking


def follow(
    defs: dg.Definitions,
    spec: ExperimentSpec,
    *,
    instance: dg.DagsterInstance,
    store: CellStore,
    tracking: Tracking,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Verdict]:
    """Judge every registered version that an experiment watches, as far as that can be done now.

    Args:
        defs: the code location.
        spec: the experiment.
        instance: where runs and verdicts are recorded.
        store: where values are kept.
        tracking: MLflow.
        log: gets a line for each run and verdict.

    Returns:
        `NAME@VERSION` -> its verdict; a version whose run has failed waits for its next try.

    Raises:
        TrackingUnavailable: MLflow does not answer.
    """
    graph, job = defs.resolve_asset_graph(), defs.resolve_implicit_global_asset_job_def()
    while True:
        watcher = Watcher(spec, graph, instance, store, tracking)
        seen = watcher.look()
        record(watcher, seen, log)
        if not seen.requests:
            return seen.verdicts
        for request in seen.requests:
            assets: Any = list(request.asset_selection or [])
            tags = dict(request.tags)
            log(f"{', '.join(key.path[-1] for key in assets)} of {tags.get(VERSIONS_TAG, 'all')}")
            with to_the_log_alone():
                job.execute_in_process(
                    run_config=QUIET, asset_selection=assets, instance=instance, tags=tags, raise_on_error=False
                )


def record(watcher: Watcher, seen: Seen, log: Callable[[str], None]) -> None:
    """Keep what one look has found: partitions, verdicts, and who was told."""
    dimension = dynamic_dimension(watcher.spec.name, BRANCH)
    for key in seen.gone:
        watcher.instance.delete_dynamic_partition(dimension, key)
    watcher.instance.add_dynamic_partitions(dimension, seen.new)
    told, _ = announced(watcher, seen, {}, log)
    for event in [*seen.events, *told]:
        watcher.instance.report_runless_asset_event(event)
    for line in seen.lines:
        log(line)
