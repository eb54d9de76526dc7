"""Jobs: the demos' entry points, each a few cells of a dynamic experiment, run by one Dagster job.

A job names its cells by their configs, so the same job asked for twice computes nothing twice.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from dioptra_assets.assets.boundary import dynamic_dimension
from dioptra_assets.assets.keyed_configs import KEYED_CONFIG, keep_config
from dioptra_assets.entry_points.table import (
    ENTRY_POINTS,
    EntryPointError,
    Target,
    config_of,
    entry_point,
    parse_parameters,
    target_of,
    unused,
)
from dioptra_assets.runs.launch import CellFailedError, materialize_cell
from partitions.attacks import Family
from partitions.dynamic_keys import config_key, is_short
from partitions.image_sets import SETS, set_document, set_key
from partitions.keys import ARCHITECTURE, ATTACK, CONFIG_KEY, DEFENCE, IMAGE_SET
from resources.store import Cell, CellStore, StoreResource
from resources.tracking.resource import Tracking

JOB = "entry_point"
OP = "run_entry_point"
# Run tags that say what a job was and what came of it.
ENTRY_POINT_TAG, MLFLOW_RUN_TAG, CELL_TAG = "dioptra/entry_point", "dioptra/mlflow_run_id", "dioptra/cell"
ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
POLL_SECONDS = 1.0
# An enumeration, so that the launchpad lists them.
_ENTRY_POINTS = dg.Enum("EntryPoint", [dg.EnumValue(name, description=one.help) for name, one in ENTRY_POINTS.items()])


@dataclass(frozen=True)
class Step:
    """One cell of a job.

    Attributes:
        asset: name below the experiment.
        partition: dimension -> key.
        family: of the attack key.
        main: what the job is about; its MLflow run is the job's.
        kept: of a `keyed_config`, what is put there before it is materialized.
    """

    asset: str
    partition: Mapping[str, str]
    family: Family = "evasion"
    main: bool = False
    kept: Mapping[str, Any] | None = None


def plan(name: str, values: Mapping[str, Any], store: CellStore, tracking: Tracking) -> list[Step]:
    """The cells of a job, each after those it is made from.

    Raises:
        EntryPointError: where the values do not fit together, or name a model or set that there is not.
    """
    name = entry_point(name).name
    target = target_of(name, values)
    model = _model_key(target, store, tracking)
    configs = config_of(name, values, model=model)
    keys = {section: config_key(_name_of(config), config) for section, config in configs.items()}
    documents = {key: configs[section].model_dump(mode="json") for section, key in keys.items()}
    return [*_kept(documents), *_cells_of(name, target, keys, model, tracking)]


def _kept(documents: Mapping[str, Mapping[str, Any]]) -> list[Step]:
    """Of some keys, with what they name, those that are short."""
    return [Step(KEYED_CONFIG, {CONFIG_KEY: key}, kept=one) for key, one in documents.items() if is_short(key)]


def _cells_of(  # noqa: PLR0911 - one return for each kind of job
    name: str, target: Target, keys: Mapping[str, str], model: str | None, tracking: Tracking
) -> list[Step]:
    sets = [Step("training_set", {}), Step("testing_set", {})]
    trained = keys.get("architecture") or model
    chain = [*sets, *_model_steps(trained)] if trained else sets
    both = {ARCHITECTURE: trained or ""}
    match name:
        case "train" | "init_model":
            return [*sets, *_training(keys["architecture"], target, tracking)]
        case "fgm" | "pt":
            attack = {ATTACK: keys["attack"]}
            return [
                *chain,
                Step("attack_config", attack),
                Step("adversarial_set", both | attack, main=True),
                Step("evasion_examples", both | attack),
                Step("evasion_metrics", both | attack),
            ]
        case "miface":
            attack = {ATTACK: keys["inversion"]}
            return [
                *chain,
                Step("inversion_config", attack, "inversion"),
                Step("inverted_set", both | attack, "inversion", main=True),
                Step("inversion_metrics", both | attack, "inversion"),
            ]
        case "gen_poison_test_data" if target.asset == "triggered_testing_set":
            return [*sets, *_poison_steps(keys["poisoning"], "triggered_testing_set")]
        case "gen_poison_test_data":
            return [*sets, *_poison_steps(keys["poisoning"], "poisoned_training_set", "poison_manifest")]
        case "gen_poison_clean_data":
            made = ("poisoned_training_set", "poison_manifest", "triggered_testing_set")
            return [*chain, *_poison_steps(keys["poisoning"], *made)]
        case "gen_poison_model":
            made = ("poisoned_training_set", "poison_manifest", "triggered_testing_set")
            poisoned = both | {ATTACK: keys["poisoning"]}
            return [
                *chain,
                *(Step(s.asset, s.partition, s.family) for s in _poison_steps(keys["poisoning"], *made)),
                *_poisoned_steps(poisoned),
            ]
        case "infer":
            named = _stored_set(target, tracking)
            key = set_key(*named)
            kept = _kept({key: set_document(*named)})
            return [*kept, *chain, Step("predictions", both | {IMAGE_SET: key}, main=True)]
        case _:
            named = _stored_set(target, tracking)
            defended = {DEFENCE: keys["defence"], IMAGE_SET: set_key(*named)}
            behind = set_key("defended_set", defended)
            steps = [*chain, Step("defended_set", defended, main=True)]
            kept = {defended[IMAGE_SET]: set_document(*named)}
            if trained:
                steps.append(Step("predictions", both | {IMAGE_SET: behind}))
                kept |= {behind: set_document("defended_set", defended)}
            return [*_kept(kept), *steps]


def _name_of(config: Any) -> str:
    return config.architecture if hasattr(config, "architecture") else config.method


def _model_steps(key: str) -> list[Step]:
    own = {ARCHITECTURE: key}
    return [Step("architecture_config", own), Step("model", own), Step("clean_predictions", own)]


def _training(key: str, target: Target, tracking: Tracking) -> list[Step]:
    config, model, predictions = _model_steps(key)
    if target.asset != "poisoned_training_set" and target.run_id is None:
        return [config, Step(model.asset, model.partition, main=True), predictions]
    asset, partition = _stored_set(target, tracking)
    if asset != "poisoned_training_set":
        raise EntryPointError(f"entry point 'train': {asset} is no training set, name a poisoned_training_set")
    poison = partition[ATTACK]
    poisoned = {ARCHITECTURE: key, ATTACK: poison}
    return [config, model, predictions, *_poison_steps(poison, "triggered_testing_set"), *_poisoned_steps(poisoned)]


def _poison_steps(key: str, *assets: str) -> list[Step]:
    own = {ATTACK: key}
    config = Step("poisoning_config", own, "poisoning")
    return [config, *(Step(asset, own, "poisoning", main=asset == assets[0]) for asset in assets)]


def _poisoned_steps(poisoned: Mapping[str, str]) -> list[Step]:
    return [
        Step("poisoned_model", poisoned, "poisoning", main=True),
        Step("poisoning_examples", poisoned, "poisoning"),
        Step("poisoning_metrics", poisoned, "poisoning"),
    ]


def _model_key(target: Target, store: CellStore, tracking: Tracking) -> str | None:
    """The architecture key of the model that a target names; of a bare architecture that of the one model it has."""
    if target.model_name is not None:
        key = tracking.registered_model_tags(target.model_name, target.model_version).get(ARCHITECTURE)
        if key is None:
            raise EntryPointError(f"the registered model {target.model_name!r} was made by no experiment here")
        return key
    if target.model is None or "@" in target.model:
        return target.model
    asset = f"{target.experiment}/model"
    made = [cell.partition[ARCHITECTURE] for cell in store.cells(asset) if cell.asset == asset]
    fitting = [key for key in made if key.partition("@")[0] == target.model]
    if len(fitting) > 1 and target.model not in fitting:
        raise EntryPointError(f"{target.model!r} names {len(fitting)} models, give one: architecture={fitting[0]}")
    return target.model if target.model in fitting or not fitting else fitting[0]


def _stored_set(target: Target, tracking: Tracking) -> tuple[str, dict[str, str]]:
    """Asset and partition of the set that a target names."""
    if target.run_id is not None:
        tags = tracking.run_tags(target.run_id)
        asset = tags.get("asset", "").partition("/")[2]
        if asset not in SETS:
            raise EntryPointError(f"the MLflow run {target.run_id!r} made no image set, but {tags.get('asset')!r}")
        return asset, {dimension: tags[dimension] for dimension in SETS[asset]}
    asset = str(target.asset)
    return asset, {dimension: str(getattr(target, dimension)) for dimension in SETS[asset]}


def entry_point_job(load: Callable[[], dg.Definitions], module: str) -> dg.JobDefinition:
    """The Dagster job that runs an entry point: cell after cell, each in a run of its own asset.

    The job itself leads those runs, in its own process whatever executor was chosen for them: a worker that waits for
    workers could wait for itself.

    Args:
        load: gives the code location whose assets are materialized.
        module: where it is.
    """

    @dg.op(
        name=OP,
        config_schema={
            "entry_point": dg.Field(_ENTRY_POINTS, description="Which entry point."),
            "parameters": dg.Field([str], default_value=[], description="Its parameters, each as `name=value`."),
            "depends_on": dg.Field([str], default_value=[], description="Ids of jobs that must have finished."),
        },
    )
    def run_entry_point(context: dg.OpExecutionContext, store: StoreResource, tracking: Tracking) -> None:
        config, instance = context.op_config, context.instance
        name, cells = config["entry_point"], store.cells()
        instance.add_run_tags(context.run_id, {ENTRY_POINT_TAG: name})
        _await(instance, config["depends_on"], context.log.info)
        values = parse_parameters(name, config["parameters"])
        for sentence in unused(name, config["parameters"]):
            context.log.info(sentence)
        experiment = target_of(name, values).experiment
        definitions = load()
        _refuse_declared(definitions, experiment)
        for step in plan(name, values, cells, tracking):
            cell = Cell(f"{experiment}/{step.asset}", dict(step.partition))
            if step.kept is not None:
                keep_config(cells, experiment, step.partition[CONFIG_KEY], step.kept)
            for dimension, key in step.partition.items():
                instance.add_dynamic_partitions(dynamic_dimension(experiment, dimension, step.family), [key])
            try:
                made = materialize_cell(definitions, cell, instance=instance, store=cells, module=module)
            except CellFailedError as error:
                raise dg.Failure(str(error), allow_retries=False) from error
            context.log.info(f"{cell} {'done' if made.computed else 'was up to date'}")
            if step.main:
                tags = {CELL_TAG: cell.path, MLFLOW_RUN_TAG: made.mlflow_run_id}
                instance.add_run_tags(context.run_id, {tag: value for tag, value in tags.items() if value})

    @dg.job(
        name=JOB,
        description="One entry point, as `dioptra-assets run` and `submit_job` run it.",
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        run_entry_point()

    return job


def _await(instance: dg.DagsterInstance, jobs: list[str], log: Callable[[str], None]) -> None:
    for job in jobs:
        while True:
            run = instance.get_run_by_id(job)
            if run is None:
                raise dg.Failure(f"depends_on: there is no job {job!r}", allow_retries=False)
            if run.status in ENDED:
                break
            log(f"waiting for job {job} ({run.status.value})")
            time.sleep(POLL_SECONDS)
        if run.status != dg.DagsterRunStatus.SUCCESS:
            raise dg.Failure(f"depends_on: job {job} ended as {run.status.value}", allow_retries=False)


def _refuse_declared(definitions: dg.Definitions, experiment: str) -> None:
    graph = definitions.resolve_asset_graph()
    dynamic = sorted({key.path[0] for key in graph.get_all_asset_keys() if key.path[1:] == ["predictions"]})
    if experiment not in dynamic:
        raise dg.Failure(
            f"experiment {experiment!r} declares its cells, `dioptra-assets materialize {experiment}` makes them; jobs"
            f" work in {', '.join(dynamic)}",
            allow_retries=False,
        )
