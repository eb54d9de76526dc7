"""MLflow for a user's own ops and assets: dagster-mlflow's resource, bound to where this project tracks.

It is available under the name `mlflow` to everything in the same code location:

    @dg.asset(required_resource_keys={"mlflow"})
    def leaderboard(context):
        context.resources.mlflow.log_metric("best", 0.93)

One MLflow run goes with one Dagster run, as dagster-mlflow has it. The cells of experiments have runs of their own and
do not use this.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from resources import settings as home
from resources.tracking.resource import Tracking

if TYPE_CHECKING:
    from dagster_mlflow.resources import MlFlow

EXPERIMENT = "own"


@dg.resource(
    description="dagster-mlflow's `mlflow_tracking`, on the MLflow of this project: every function of `mlflow`, with an"
    " active run that belongs to the Dagster run.",
    config_schema={
        "experiment_name": dg.Field(str, default_value=EXPERIMENT, description="The MLflow experiment of the runs."),
        "extra_tags": dg.Field(dg.Permissive(), default_value={}, description="Tags of the runs."),
    },
)
def own_mlflow(context: dg.InitResourceContext) -> Iterator["MlFlow | None"]:
    """See the module.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, within seconds.
    """
    if context.run is None:
        yield None  # outside a run there is no run to log to
        return
    # Ours, so that a new experiment keeps its artefacts where the others do, and a server that is away costs seconds.
    uri = home.tracking_uri()
    tracking = Tracking(mlflow_tracking_uri=uri, artifact_location=home.artifact_location())
    tracking.require_experiment(context.resource_config["experiment_name"])
    # A second and a half of imports that only those wait for who ask for it.
    import mlflow
    from dagster_mlflow import mlflow_tracking

    settings: dict[str, Any] = {**context.resource_config, "mlflow_tracking_uri": uri, "env": {}}
    yield from mlflow_tracking.resource_fn(context.replace_config(settings))  # type: ignore[misc]
    run = context.run
    failed = run and any(
        step.status is not None and step.status.value == "FAILURE"
        for step in (context.instance.get_run_step_stats(run.run_id) if context.instance else ())
    )
    mlflow.end_run("FAILED" if failed else "FINISHED")
