"""What is computed without being asked: new registered models, what became stale, and all of it once a night."""

from collections.abc import Callable
from itertools import product

import dagster as dg

from dioptra_assets.assets.cells import asset_key, dynamic_dimension
from dioptra_assets.assets.gate_bench import gated_families
from dioptra_assets.assets.registered_models import VERSIONS, version_key
from dioptra_assets.assets.sanity import MODEL_SANITY
from dioptra_assets.launch import CellFailedError, materialize_cell, materialize_experiment
from partitions.experiments import BRANCH, ExperimentSpec, Watch, branch_of
from partitions.keys import ARCHITECTURE, ATTACK, is_key
from resources.cells import Cell
from resources.store import StoreResource
from resources.tracking import Tracking, TrackingUnavailable

JOB = "registered_model"
OP = "attack_registered_model"
NIGHTLY_JOB = "nightly"
NIGHTLY_OP = "attack_again"
INTERVAL_SECONDS = 15
# A run whose worker was killed is started anew; what it had computed is up to date and not computed again. What failed
# for a reason of its own would fail again.
RETRIES = {"dagster/max_retries": "3", "dagster/retry_on_asset_or_op_failure": "false"}
EXPERIMENT_TAG = "dioptra/experiment"
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def registry_sensor(spec: ExperimentSpec) -> dg.SensorDefinition:
    """Asks for a run for every version that the experiment watches; Dagster starts each run key once, ever.

    No cursor: a version may be tagged long after it was registered, and what a daemon that died had asked for and not
    started is asked for again.
    """
    watch = spec.watch
    assert watch is not None

    @dg.sensor(
        name=f"{spec.name}_registered_models",
        job_name=JOB,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if spec.automation else dg.DefaultSensorStatus.STOPPED,
        description=f"Versions of registered models {watch.name!r}{f' with the tag {watch.tag}' if watch.tag else ''}"
        f" become partitions of `{spec.name}/registered_model`, and are attacked, evaluated and gated.",
    )
    def sensor(context: dg.SensorEvaluationContext, tracking: Tracking) -> dg.SensorResult | dg.SkipReason:
        versions = watched_versions(watch, tracking)
        if not versions:
            return dg.SkipReason(f"no registered model {watch.name!r} {f'tagged {watch.tag}' if watch.tag else ''}")
        requests = []
        for key in versions:
            if not is_key(key):
                context.log.error(f"{key!r} cannot be a partition key: register the model under a plainer name")
                continue
            config = {"ops": {OP: {"config": {"experiment": spec.name, "version": key}}}}
            tags = {**RETRIES, "dioptra/registered_model": key}
            requests.append(dg.RunRequest(run_key=f"{spec.name}/{key}", run_config=config, tags=tags))
        return dg.SensorResult(run_requests=requests)

    return sensor


def watched_versions(watch: Watch, tracking: Tracking) -> list[str]:
    """`NAME@VERSION` of every registered version that is watched, the oldest first.

    Raises:
        TrackingUnavailable: MLflow does not answer.
    """
    taken = [version for version in tracking.registered_versions() if watch.takes(version.name, version.tags)]
    return [version_key(version.name, version.version) for version in taken]


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
        own = {EXPERIMENT_TAG: spec.name}
        before = context.instance.get_runs(dg.RunsFilter(job_name=NIGHTLY_JOB, tags=own, statuses=UNFINISHED), limit=1)
        if before:
            return dg.SkipReason(f"run {before[0].run_id}, of the time before, has not ended")
        config = {"ops": {NIGHTLY_OP: {"config": {"experiment": spec.name}}}}
        return dg.RunRequest(run_config=config, tags={**RETRIES, **own})

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
        spec, instance = specs(context.op_config["experiment"]), context.instance
        if spec.watch:
            try:
                keys = [key for key in watched_versions(spec.watch, tracking) if is_key(key)]
                instance.add_dynamic_partitions(dynamic_dimension(spec.name, BRANCH), keys)
            except TrackingUnavailable as error:
                context.log.warning(f"registered models that are new are left for the next time: {error}")
        done = materialize_experiment(
            load(), spec.name, instance=instance, store=store.cells(), log=context.log.info, module=module
        )
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


def registered_model_job(
    load: Callable[[], dg.Definitions], specs: Callable[[str], ExperimentSpec], module: str
) -> dg.JobDefinition:
    """The job that attacks one version, cell after cell; what is up to date is not computed again.

    Args:
        load: gives the code location whose assets are materialized.
        specs: from an experiment's name to what its file declares.
        module: where that code location is.
    """

    @dg.op(
        name=OP,
        config_schema={
            "experiment": dg.Field(str, description="Name of an experiment that watches the registry."),
            "version": dg.Field(str, description="NAME@VERSION of a registered model."),
        },
    )
    def attack_registered_model(context: dg.OpExecutionContext, store: StoreResource) -> None:
        spec = branch_of(specs(context.op_config["experiment"]))
        own = {ARCHITECTURE: context.op_config["version"]}
        instance, cells, definitions = context.instance, store.cells(), load()
        instance.add_dynamic_partitions(dynamic_dimension(spec.name, spec.branch), [own[ARCHITECTURE]])
        failures: list[str] = []

        def make(asset: str, partition: dict[str, str]) -> bool:
            cell = Cell("/".join(asset_key(spec, asset).path), partition)
            try:
                made = materialize_cell(definitions, cell, instance=instance, store=cells, module=module)
            except CellFailedError as error:
                failures.append(str(error))
                context.log.error(str(error))
                return False
            context.log.info(f"{cell} {'done' if made.computed else 'was up to date'}")
            return True

        if make("testing_set", {}) and make("model", own) and make("clean_predictions", own):
            made_from = ["adversarial_set", "evasion_examples", "evasion_metrics"]
            measured = []
            for key in spec.attacks:
                # The first that fails ends this attack; the others are made all the same.
                if make("attack_config", {ATTACK: key}) and all(make(one, own | {ATTACK: key}) for one in made_from):
                    measured.append(key)
            # A gate goes by the sanity checks of the model, which are over all of its attacks.
            if measured and make(MODEL_SANITY, own):
                for family, key in product(gated_families(spec), measured):
                    make(f"{family}_gate", own | {ATTACK: key})
            make(VERSIONS, {})
        if failures:
            raise dg.Failure(
                f"{own[ARCHITECTURE]} of {spec.name}: {len(failures)} cells failed: {'; '.join(failures)}",
                allow_retries=False,
            )

    @dg.job(
        name=JOB,
        description="Attack, evaluate and gate one version of a registered model.",
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        attack_registered_model()

    return job
