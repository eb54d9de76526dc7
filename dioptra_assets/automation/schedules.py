"""The times at which an experiment is computed."""

import dagster as dg

from dioptra_assets.automation.jobs import EXPERIMENT_TAG, NIGHTLY_JOB, NIGHTLY_OP, unfinished_night
from partitions.experiments import ExperimentSpec

# A run whose worker was killed is started anew; what it had computed is up to date and not computed again. What failed
# for a reason of its own would fail again.
RETRIES = {"dagster/max_retries": "3", "dagster/retry_on_asset_or_op_failure": "false"}


def nightly_schedule(spec: ExperimentSpec) -> dg.ScheduleDefinition:
    """Starts the job `nightly` for an experiment at its times; on, as the experiment asks for them."""

    @dg.schedule(
        name=f"{spec.name}_nightly",
        job_name=NIGHTLY_JOB,
        cron_schedule=spec.schedule,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Computes every missing or stale cell of {spec.name}, registered models included.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if before := unfinished_night(context.instance, spec.name):
            return dg.SkipReason(f"run {before.run_id}, of the time before, has not ended")
        config = {"ops": {NIGHTLY_OP: {"config": {"experiment": spec.name}}}}
        return dg.RunRequest(run_config=config, tags={**RETRIES, EXPERIMENT_TAG: spec.name})

    return schedule
