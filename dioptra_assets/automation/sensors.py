"""What is computed without being asked: new registered models, what became stale, and all of it once a night."""

import json
from collections import Counter
from collections.abc import Callable

import dagster as dg

from dioptra_assets.assets.boundary import asset_key, dynamic_dimension
from dioptra_assets.assets.config_assets import ATTACK_CONFIG
from dioptra_assets.registered_versions.announcing import announced
from dioptra_assets.registered_versions.asked_runs import UNFINISHED
from dioptra_assets.registered_versions.follow import record
from dioptra_assets.registered_versions.registry import Seen
from dioptra_assets.registered_versions.watcher import Watcher
from dioptra_assets.runs.launch import materialize_experiment
from partitions.experiments import BRANCH, ExperimentSpec
from resources.store import StoreResource
from resources.tracking.resource import Tracking, TrackingUnavailable

NIGHTLY_JOB = "nightly"
NIGHTLY_OP = "attack_again"
# The daemon looks every five seconds.
INTERVAL_SECONDS = 5
# A look that came to nothing while runs are at work waits so long for one of them to end: what its cells make possible
# begins at once, and not at the next look. A sensor has a minute, and whoever registers meanwhile waits no longer.
PATIENCE_SECONDS = 10.0
MOST_LINES = 20
# A run whose worker was killed is started anew; what it had computed is up to date and not computed again. What failed
# for a reason of its own would fail again.
RETRIES = {"dagster/max_retries": "3", "dagster/retry_on_asset_or_op_failure": "false"}
EXPERIMENT_TAG = "dioptra/experiment"


def registry_sensor(spec: ExperimentSpec) -> dg.SensorDefinition:
    """Follows the registry: new versions become partitions, what they lack is asked for, verdicts go to their owners.

    The cursor holds nothing but when a webhook that was away is tried again.
    """
    watch = spec.watch
    assert watch is not None
    wanted = [f"tag {watch.tag}"] * bool(watch.tag) + [f"alias {watch.alias}"] * bool(watch.alias)
    what = repr(watch.name) + (f" with the {' and the '.join(wanted)}" if wanted else "")

    @dg.sensor(
        name=f"{spec.name}_registered_models",
        asset_selection=dg.AssetSelection.key_prefixes([spec.name, BRANCH])
        | dg.AssetSelection.assets(asset_key(spec, "testing_set"), asset_key(spec, ATTACK_CONFIG)),
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if spec.automation else dg.DefaultSensorStatus.STOPPED,
        description=f"Versions of registered models {what} become partitions of `{spec.name}/{BRANCH}`, are attacked,"
        " evaluated and gated; the verdict is written to the version in MLflow.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, store: StoreResource, tracking: Tracking
    ) -> dg.SensorResult | dg.SkipReason:
        assert context.repository_def is not None
        graph = context.repository_def.asset_graph
        try:
            watcher = Watcher(spec, graph, context.instance, store.cells(), tracking)
            seen = watcher.look()
            if seen.nothing and watcher.runs.one_has_ended(PATIENCE_SECONDS):
                watcher = Watcher(spec, graph, context.instance, store.cells(), tracking)
                seen = watcher.look()
        except TrackingUnavailable as error:
            return dg.SkipReason(f"{error}; what was registered meanwhile is found when it is back")
        later = json.loads(context.cursor) if context.cursor else {}
        told, later = announced(watcher, seen, later, context.log.warning)
        dimension = dg.DynamicPartitionsDefinition(name=dynamic_dimension(spec.name, BRANCH))
        partitions = [dimension.build_delete_request(seen.gone)] if seen.gone else []
        partitions += [dimension.build_add_request(seen.new)] if seen.new else []
        for line in seen.lines:
            context.log.info(line)
        # What the nightly job computes is not computed beside it.
        requests = [] if _unfinished_night(context.instance, spec.name) else seen.requests
        return dg.SensorResult(
            run_requests=requests or None,
            skip_reason=None if requests else _said(seen, what),
            dynamic_partitions_requests=partitions,
            asset_events=[*seen.events, *told],
            cursor=json.dumps(later) if later else "",
        )

    return sensor


def _said(seen: Seen, what: str) -> str:
    """What a look came to that asked for no run."""
    if seen.lines:
        more = len(seen.lines) - MOST_LINES
        return "; ".join(seen.lines[:MOST_LINES]) + (f"; and {more} more" if more > 0 else "")
    counts = Counter(verdict.status for verdict in seen.verdicts.values())
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"nothing new: {said}" if said else f"no registered model {what}"


def _unfinished_night(instance: dg.DagsterInstance, experiment: str) -> dg.DagsterRun | None:
    wanted = dg.RunsFilter(job_name=NIGHTLY_JOB, tags={EXPERIMENT_TAG: experiment}, statuses=UNFINISHED)
    return next(iter(instance.get_runs(wanted, limit=1)), None)


def automation_sensor(spec: ExperimentSpec) -> dg.AutomationConditionSensorDefinition:
    """Evaluates the conditions of an experiment's cells, see `assets/cells.py`; on, as the experiment asks."""
    return dg.AutomationConditionSensorDefinition(
        f"{spec.name}_automation",
        target=dg.AssetSelection.groups(spec.name),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Computes what is missing or stale of {spec.name}.",
    )


def nightly_schedule(spec: ExperimentSpec) -> dg.ScheduleDefinition:
    """Starts the job `nightly` for an experiment at its times; on, as the experiment asks for them."""

    @dg.schedule(
        name=f"{spec.name}_nightly",
        job_name=NIGHTLY_JOB,
        cron_schedule=spec.schedule,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Computes what is missing or stale of {spec.name}, registered models included.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if before := _unfinished_night(context.instance, spec.name):
            return dg.SkipReason(f"run {before.run_id}, of the time before, has not ended")
        config = {"ops": {NIGHTLY_OP: {"config": {"experiment": spec.name}}}}
        return dg.RunRequest(run_config=config, tags={**RETRIES, EXPERIMENT_TAG: spec.name})

    return schedule


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
        config_schema={"experiment": dg.Field(str, description="Name of an experiment that is declared.")},
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
                f"{spec.name}: {len(done.failed)} cells failed, {len(done.skipped)} made from them were not tried:"
                f" {reasons}",
                allow_retries=False,
            )

    @dg.job(
        name=NIGHTLY_JOB,
        description="Compute what is missing or stale of an experiment.",
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        attack_again()

    return job
