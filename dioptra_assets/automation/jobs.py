"""The job that computes an experiment at its times, whatever a sensor has seen meanwhile."""

from collections.abc import Callable

import dagster as dg

from dioptra_assets.dagster_internals import NOT_FINISHED_STATUSES
from dioptra_assets.registered_versions.follow import record
from dioptra_assets.registered_versions.watcher import Watcher
from dioptra_assets.runs.launch import materialize_experiment
from partitions.experiments import ExperimentSpec
from resources.store import StoreResource
from resources.tracking.resource import Tracking, TrackingUnavailable

NIGHTLY_JOB = "nightly"
NIGHTLY_OP = "attack_again"
EXPERIMENT_TAG = "dioptra/experiment"


def unfinished_night(instance: dg.DagsterInstance, experiment: str) -> dg.DagsterRun | None:
    """The run of the job for an experiment that has not ended, if there is one."""
    wanted = dg.RunsFilter(job_name=NIGHTLY_JOB, tags={EXPERIMENT_TAG: experiment}, statuses=NOT_FINISHED_STATUSES)
    return next(iter(instance.get_runs(wanted, limit=1)), None)


def nightly_job(
    load: Callable[[], dg.Definitions], specs: Callable[[str], ExperimentSpec], module: str
) -> dg.JobDefinition:
    """The job that computes every cell of an experiment that is missing or stale, and attacks what it watches.

    What is stale is found anew and by content, whatever a sensor has seen meanwhile: what failed is tried again, and
    what was lost from the store is made again.

    Args:
        load: gives the code location whose assets are materialized.
        specs: from an experiment's name to what its file declares.
        module: where that code location is.
    """

    @dg.op(
        name=NIGHTLY_OP,
        config_schema={"experiment": dg.Field(str, description="Name of a declared experiment.")},
    )
    def attack_again(context: dg.OpExecutionContext, store: StoreResource, tracking: Tracking) -> None:
        spec, instance, definitions = specs(context.op_config["experiment"]), context.instance, load()

        def look() -> None:
            """What the sensor does, but for its runs."""
            if not spec.watch:
                return
            watcher = Watcher(spec, definitions.resolve_asset_graph(), instance, store.cells(), tracking)
            try:
                record(watcher, watcher.look(), context.log.info)
            except TrackingUnavailable as error:
                context.log.warning(f"registered models that are new are left for the next time: {error}")

        look()
        done = materialize_experiment(
            definitions, spec.name, instance=instance, store=store.cells(), log=context.log.info, module=module
        )
        look()
        context.log.info(f"{len(done.computed)} cells computed, {done.fresh} were up to date")
        if done.failed:
            reasons = "; ".join(f"{cell}: {reason}" for cell, reason in done.failed.items())
            raise dg.Failure(
                f"{spec.name}: {len(done.failed)} cells failed, {len(done.skipped)} downstream of them were not tried:"
                f" {reasons}",
                allow_retries=False,
            )

    @dg.job(
        name=NIGHTLY_JOB,
        description="Compute every missing or stale cell of an experiment.",
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        attack_again()

    return job
