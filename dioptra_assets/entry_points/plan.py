"""The cells that an entry point makes, each after its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dioptra_assets.assets.keyed_configs import KEYED_CONFIG
from dioptra_assets.entry_points.entry_point import EntryPoint, EntryPointError, Target
from dioptra_assets.entry_points.parsing import config_of, target_of
from partitions.attacks import Family
from partitions.dynamic_keys import config_key, is_short
from partitions.image_sets import SETS, set_document, set_key
from partitions.keys import ARCHITECTURE, ATTACK, CONFIG_KEY, DEFENCE, IMAGE_SET
from resources.store import CellStore
from resources.tracking.resource import Tracking


@dataclass(frozen=True)
class Step:
    """One cell of a job.

    Attributes:
        asset: name below the experiment.
        partition: dimension -> key.
        family: of the attack key.
        main: whether this is the main result. Its MLflow run is that of the job.
        kept: for a `keyed_config`, the config to store before it is materialized.
    """

    asset: str
    partition: Mapping[str, str]
    family: Family = "evasion"
    main: bool = False
    kept: Mapping[str, Any] | None = None


def plan(entry: EntryPoint, values: Mapping[str, Any], store: CellStore, tracking: Tracking) -> list[Step]:
    """The cells of a job, each after its inputs.

    Raises:
        EntryPointError: the values contradict each other, or name a model or image set that does not exist.
    """
    target = target_of(entry, values)
    model = _model_key(target, store, tracking)
    configs = config_of(entry, values, model=model)
    keys = {section: config_key(_name_of(config), config) for section, config in configs.items()}
    documents = {key: configs[section].model_dump(mode="json") for section, key in keys.items()}
    return [*_kept(documents), *_cells_of(entry.name, target, keys, model, tracking)]


def _kept(documents: Mapping[str, Mapping[str, Any]]) -> list[Step]:
    """Steps that store the documents behind short keys. Other keys spell out their document."""
    return [
        Step(KEYED_CONFIG, {CONFIG_KEY: key}, kept=document) for key, document in documents.items() if is_short(key)
    ]


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
    partition = {ARCHITECTURE: key}
    return [Step(asset, partition) for asset in ("architecture_config", "model", "clean_predictions")]


def _training(key: str, target: Target, tracking: Tracking) -> list[Step]:
    config, model, predictions = _model_steps(key)
    if target.asset != "poisoned_training_set" and target.run_id is None:
        return [config, Step(model.asset, model.partition, main=True), predictions]
    asset, partition = _stored_set(target, tracking)
    if asset != "poisoned_training_set":
        raise EntryPointError(f"entry point 'train': {asset} is not a training set, give a poisoned_training_set")
    poison = partition[ATTACK]
    poisoned = {ARCHITECTURE: key, ATTACK: poison}
    return [config, model, predictions, *_poison_steps(poison, "triggered_testing_set"), *_poisoned_steps(poisoned)]


def _poison_steps(key: str, *assets: str) -> list[Step]:
    partition = {ATTACK: key}
    config = Step("poisoning_config", partition, "poisoning")
    return [config, *(Step(asset, partition, "poisoning", main=asset == assets[0]) for asset in assets)]


def _poisoned_steps(poisoned: Mapping[str, str]) -> list[Step]:
    return [
        Step("poisoned_model", poisoned, "poisoning", main=True),
        Step("poisoning_examples", poisoned, "poisoning"),
        Step("poisoning_metrics", poisoned, "poisoning"),
    ]


def _model_key(target: Target, store: CellStore, tracking: Tracking) -> str | None:
    """Architecture key of the model that a target names. A bare architecture stands for its only model."""
    if target.model_name is not None:
        key = tracking.registered_model_tags(target.model_name, target.model_version).get(ARCHITECTURE)
        if key is None:
            raise EntryPointError(f"the registered model {target.model_name!r} was not made by an experiment here")
        return key
    if target.model is None or "@" in target.model:
        return target.model
    asset = f"{target.experiment}/model"
    made = [cell.partition[ARCHITECTURE] for cell in store.cells(asset) if cell.asset == asset]
    fitting = [key for key in made if key.partition("@")[0] == target.model]
    if len(fitting) > 1 and target.model not in fitting:
        raise EntryPointError(
            f"{target.model!r} matches {len(fitting)} models, give one of them, for example architecture={fitting[0]}"
        )
    return target.model if target.model in fitting or not fitting else fitting[0]


def _stored_set(target: Target, tracking: Tracking) -> tuple[str, dict[str, str]]:
    """Asset and partition of the image set that a target names."""
    if target.run_id is not None:
        tags = tracking.run_tags(target.run_id)
        asset = tags.get("asset", "").partition("/")[2]
        if asset not in SETS:
            raise EntryPointError(
                f"the MLflow run {target.run_id!r} did not make an image set, but {tags.get('asset')!r}"
            )
        return asset, {dimension: tags[dimension] for dimension in SETS[asset]}
    asset = str(target.asset)
    return asset, {dimension: str(getattr(target, dimension)) for dimension in SETS[asset]}
