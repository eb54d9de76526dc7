"""Log to MLflow what could not be logged while it was unreachable, and link the runs in Dagster."""

from collections.abc import Callable

import dagster as dg

from partitions.keys import partition_key_of
from resources import settings
from resources.store import CellStore
from resources.tracking.backlog import Written, write_backlog
from resources.tracking.resource import Tracking


def tell_mlflow(
    tracking: Tracking, store: CellStore, instance: dg.DagsterInstance, log: Callable[[str], None]
) -> Written:
    """Write the backlog of a store to MLflow, and link each cell to its run by an observation.

    An empty backlog costs one listing of the store.

    Args:
        tracking: MLflow.
        store: where the backlog is.
        instance: where the observations are recorded.
        log: called with a line on what was written and what is still waiting.
    """
    written = write_backlog(tracking, store)
    for tags, run_id, url in written.runs:
        dimensions = {name: tags[name] for name in ("architecture", "attack") if name in tags}
        page = url or f"{settings.mlflow_ui()} (run {run_id})"
        instance.report_runless_asset_event(
            dg.AssetObservation(
                dg.AssetKey(tags["asset"].split("/")),
                partition=partition_key_of(dimensions),
                metadata={"mlflow_run": dg.MetadataValue.url(page), "mlflow_run_id": run_id},
            )
        )
    if written.runs:
        log(f"{len(written.runs)} cells that were waiting were logged to MLflow")
    if written.why:
        log(f"{written.waiting} cells are waiting for MLflow: {written.why}")
    return written
