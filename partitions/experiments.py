"""An experiment: what a YAML file declares, typed and checked as a whole."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dioptra_assets.robustness.attacks import Attack
from dioptra_assets.robustness.data import AnySource, DataSource
from dioptra_assets.robustness.defences import DEFAULT_EOT_SAMPLES, Defence
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
from dioptra_assets.robustness.evaluation.gates import Gate
from dioptra_assets.robustness.inversion.miface import ModelInversion
from dioptra_assets.robustness.poisoning import CleanLabelBackdoor, Poisoning
from dioptra_assets.robustness.training.loop import TrainingRecipe
from partitions.architectures import recipe_model, training_recipes
from partitions.attacks import METHODS, SECTIONS, Family, attack_configs, by_method
from partitions.defences import defence_configs
from partitions.dynamic_keys import KeyedConfigs
from partitions.entries import ExperimentError, one_of, refuse_more_cells, validate
from partitions.gates import gate_rules
from partitions.notify import Notify

SOURCES: dict[str, type[DataSource]] = {
    source.model_fields["source"].default: source for source in get_args(get_args(AnySource)[0])
}


def _owner(owner: str) -> str:
    if not re.fullmatch(r"team:.+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", owner):
        raise ValueError(f"{owner!r} is not allowed, an owner is a person (jane@example.org) or a team (team:red)")
    return owner


def _cron(schedule: str) -> str:
    from dioptra_assets.dagster_internals import is_valid_cron_schedule

    if schedule and not is_valid_cron_schedule(schedule):
        raise ValueError(
            f"{schedule!r} is not allowed, it must be five cron fields (minute, hour, day of the month, month, day of"
            " the week), such as '0 2 * * *' for two o'clock every night"
        )
    return schedule


class Watch(BaseModel):
    """Which versions in the MLflow registry an experiment watches: those that meet all that is given.

    Attributes:
        name: the name of the registered model; `*` stands for anything.
        tag: a tag of the version, `candidate` or `stage=review`; by default any version is watched.
        alias: an alias of the model, such as `champion`: the version that it names, and the next when it moves; by
            default no alias is needed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="*", min_length=1)
    tag: str = Field(default="", pattern="^([^=]+(=.*)?)?$")
    alias: str = ""

    def takes(self, name: str, tags: Mapping[str, str], aliases: Collection[str] = ()) -> bool:
        """Whether a version of a name, with its tags and the aliases that name it, is watched."""
        key, given, value = self.tag.partition("=")
        tagged = not key or (key in tags and (not given or tags[key] == value))
        return fnmatchcase(name, self.name) and tagged and (not self.alias or self.alias in aliases)


class ExperimentFile(BaseModel):
    """The fields of an experiment file, below `attributes`.

    Attributes:
        description: one or two sentences, shown in the UI and on the report.
        seed: the one seed that everything random in the experiment is derived from.
        owners: people (`jane@example.org`) or teams (`team:red`) shown beside every asset.
        data: where the images come from: `source` and its parameters.
        architectures: architecture key -> training recipe.
        attacks: attack key -> evasion attack config.
        poisonings: attack key -> backdoor poisoning config.
        inversions: attack key -> model inversion config.
        defences: name -> preprocessing defence, evaluated on every attack, oblivious and adaptive.
        eot_samples: draws of a random defence that an adaptive attack takes the mean of.
        gates: what the numbers must reach, a sentence each: `robust_accuracy >= 0.6 for pgd_0.3`, `asr <= 0.05`,
            `robust_accuracy no worse than last`; as `{rule: SENTENCE, severity: warn}` it only warns.
        watch: registered models that are attacked and gated beside those trained here, whoever registered them.
        notify: the webhook that is told of registered versions that failed, or that could not be judged.
        automation: compute what is stale or missing, and attack new registered models, without being asked.
        schedule: when to compute what is stale or missing, and attack the registered models that are watched again:
            five cron fields in UTC, `0 2 * * *` for two o'clock every night; by default never.
        sanity: what a failed sanity check does: `warn`, or `block` what is made from the metrics.
        log_sets: also log every adversarial and inverted set to its MLflow run, as `testing_adversarial_METHOD.tar.gz`.
        dynamic: nothing is declared: jobs add architectures, attacks and defences on demand, and each key
            carries its config, `fgm@eps=0.3@norm=2`.
        cell_limit: the most cells that one kind of asset may come to (architectures x attacks x defences): a slip in a
            sweep is refused before anything is made of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    owners: tuple[Annotated[str, AfterValidator(_owner)], ...] = ()
    data: dict[str, Any]
    architectures: dict[str, Any] = Field(default_factory=dict)
    attacks: dict[str, Any] = Field(default_factory=dict)
    poisonings: dict[str, Any] = Field(default_factory=dict)
    inversions: dict[str, Any] = Field(default_factory=dict)
    defences: dict[str, Any] = Field(default_factory=dict)
    eot_samples: int = Field(default=DEFAULT_EOT_SAMPLES, ge=1, le=1000)
    gates: tuple[Any, ...] = ()
    watch: Watch | None = None
    notify: Notify | None = None
    automation: bool = False
    schedule: Annotated[str, AfterValidator(_cron)] = ""
    sanity: Literal["warn", "block"] = "warn"
    log_sets: bool = False
    dynamic: bool = False
    cell_limit: int = Field(default=25_000, ge=1, le=1_000_000)


@dataclass(frozen=True)
class ExperimentSpec:
    """An experiment, checked.

    Attributes:
        name: the folder of its file; prefix and group of its assets.
        description: for people.
        seed: what every cell's seed is derived from.
        owners: shown beside every asset.
        source: where the images come from.
        architectures: architecture key -> training recipe.
        attacks: attack key -> evasion attack config.
        poisonings: attack key -> backdoor poisoning config.
        inversions: attack key -> model inversion config.
        defences: name -> preprocessing defence.
        eot_samples: draws of a random defence in an adaptive attack.
        sanity: whether a failed sanity check warns or blocks.
        log_sets: whether adversarial and inverted sets are logged to MLflow as archives.
        dynamic: whether architectures and attacks are added on demand, each key carrying its config.
        gates: what the numbers of every model must reach.
        watch: which registered models are attacked beside those trained here.
        notify: who is told of registered versions that failed, or that could not be judged.
        automation: whether stale cells and new registered models are computed without being asked for.
        schedule: when they are all the same: five cron fields in UTC, or nothing.
        cell_limit: the most cells that one kind of asset may come to.
        branch: the part of the graph that is meant, where it is not the experiment itself: see :func:`branch_of`.
        folder: where its file is; empty for an experiment without a file.
        digest: of what the file says.
    """

    name: str
    description: str
    seed: int
    owners: tuple[str, ...]
    source: DataSource
    architectures: Mapping[str, TrainingRecipe]
    attacks: Mapping[str, Attack]
    poisonings: Mapping[str, Poisoning]
    inversions: Mapping[str, ModelInversion]
    defences: dict[str, Defence]
    eot_samples: int
    sanity: Literal["warn", "block"]
    log_sets: bool
    dynamic: bool = False
    gates: tuple[Gate, ...] = ()
    watch: Watch | None = None
    notify: Notify | None = None
    automation: bool = False
    schedule: str = ""
    cell_limit: int = 25_000
    branch: str = ""
    folder: str = field(default="", compare=False)
    digest: str = field(default="", compare=False)

    @property
    def trains(self) -> bool:
        """Whether anything needs training images: nothing does where every recipe has `epochs: 0` and stays as it is.

        Without training images there is no asset `training_set`; image size and class names are those of `testing_set`.
        """
        fits = any(defence.apply_fit for defence in self.defences.values())
        trained = any(recipe.epochs for recipe in self.architectures.values())
        return bool(self.dynamic or self.poisonings or self.inversions or fits or trained)

    def family(self, family: Family) -> Mapping[str, Any]:
        """The attack configs of one family by attack key."""
        return {"evasion": self.attacks, "poisoning": self.poisonings, "inversion": self.inversions}[family]


def check_name(name: str) -> None:
    """Refuse the name of an experiment's folder by which Dagster could not group assets.

    Raises:
        ExperimentError: naming it and what is allowed.
    """
    if not re.fullmatch("[A-Za-z0-9_]{1,100}", name):
        raise ExperimentError(
            f"experiment {name!r}: the name of its folder is not allowed, it takes 1 to 100 of A-Z a-z 0-9 _"
        )


def parse_experiment(name: str, attributes: Mapping[str, Any], folder: str = "") -> ExperimentSpec:
    """Check everything that an experiment file says; `folder` is where it stands.

    Raises:
        ExperimentError: a sentence for each mistake, with experiment, entry, field, value and what is allowed.
    """
    check_name(name)
    where = f"experiment {name!r}"
    file = validate(ExperimentFile, attributes, where)
    source = _data_source(file.data, where)
    _check_declared(file, where)
    if file.dynamic:
        return _dynamic(name, file, source)
    architectures = training_recipes(name, file.architectures, source, file.cell_limit)
    families: dict[Family, dict[str, Any]] = {
        family: attack_configs(name, family, getattr(file, section), file.cell_limit)
        for family, section in SECTIONS.items()
    }
    defences = defence_configs(name, file.defences, file.cell_limit)
    for family, attacks in families.items():
        sizes = {"architectures": len(architectures), SECTIONS[family]: len(attacks), "defences": len(defences)}
        crossed = " x ".join(f"{size:,} {section}" for section, size in sizes.items() if size)
        refuse_more_cells(f"{where}, {crossed}", math.prod(filter(None, sizes.values())), file.cell_limit)
    for family, attacks in families.items():
        for key, attack in attacks.items():
            try:
                check_attack(attack, source, architectures)
            except ValueError as error:
                raise ExperimentError(f"{where}, {SECTIONS[family]} entry {key!r}: {error}") from error
    return ExperimentSpec(
        name=name,
        description=file.description,
        seed=file.seed,
        owners=file.owners,
        source=source,
        architectures=architectures,
        attacks=families["evasion"],
        poisonings=families["poisoning"],
        inversions=families["inversion"],
        defences=defences,
        eot_samples=file.eot_samples,
        sanity=file.sanity,
        log_sets=file.log_sets,
        watch=file.watch,
        notify=file.notify,
        automation=file.automation,
        schedule=file.schedule,
        cell_limit=file.cell_limit,
        folder=folder,
        digest=hashlib.sha256(json.dumps(attributes, default=str).encode()).hexdigest(),
        gates=gate_rules(
            name,
            file.gates,
            {"evasion": families["evasion"], "poisoning": families["poisoning"]},
            defences,
            watches=file.watch is not None,
        ),
    )


BRANCH = "registered_model"


def branch_of(spec: ExperimentSpec) -> ExperimentSpec:
    """The experiment as its branch of registered models sees it: keys are added as models are found, no defences."""
    gates = tuple(gate for gate in spec.gates if gate.defence == NO_DEFENCE)
    return replace(spec, branch=BRANCH, architectures={}, poisonings={}, inversions={}, defences={}, gates=gates)


def _check_declared(file: ExperimentFile, where: str) -> None:
    if not file.dynamic and not file.architectures and not file.watch:
        raise ExperimentError(f"{where}, field 'architectures': {{}} is not allowed, at least 1 must be given")
    if file.watch and not file.attacks:
        raise ExperimentError(f"{where}, field 'attacks': {{}} is not allowed, with `watch` at least 1 must be given")
    trained = ("poisonings", "inversions", "defences")
    idle = next((section for section in trained if getattr(file, section)), None)
    if not file.architectures and not file.dynamic and idle:
        raise ExperimentError(
            f"{where}, field {idle!r}: it needs models that are trained here, declare `architectures` or take it out"
        )
    if file.notify and not file.watch:
        raise ExperimentError(f"{where}, field 'notify': it tells of registered versions, add `watch` or take it out")
    sections = ("architectures", *SECTIONS.values(), "defences")
    if file.dynamic and (declared := next((section for section in sections if getattr(file, section)), None)):
        raise ExperimentError(
            f"{where}, field {declared!r}: in a dynamic experiment nothing is declared, take its entries out"
        )
    asking = ("gates", "watch", "notify", "automation", "schedule")
    if file.dynamic and (asked := next((field for field in asking if getattr(file, field)), None)):
        raise ExperimentError(
            f"{where}, field {asked!r}: a dynamic experiment computes what jobs ask for and nothing else, take it out"
        )


def _dynamic(name: str, file: ExperimentFile, source: DataSource) -> ExperimentSpec:
    return ExperimentSpec(
        name=name,
        description=file.description,
        seed=file.seed,
        owners=file.owners,
        source=source,
        architectures=KeyedConfigs("architecture", recipe_model),
        attacks=KeyedConfigs("attack", by_method(METHODS["evasion"])),
        poisonings=KeyedConfigs("poisoning", by_method(METHODS["poisoning"])),
        inversions=KeyedConfigs("inversion", by_method(METHODS["inversion"])),
        defences={},
        eot_samples=file.eot_samples,
        sanity=file.sanity,
        log_sets=file.log_sets,
        dynamic=True,
    )


def check_attack(attack: Any, source: DataSource, architectures: Mapping[str, TrainingRecipe]) -> None:
    """Refuse an attack config of any family that does not fit the images, the classes or the models.

    Raises:
        ValueError: naming the field, the value and what is allowed.
    """
    count = source.class_count()
    if isinstance(attack, Poisoning):
        attack.check_fits(source.image_shape, count)
    elif count is not None:
        attack.check_classes(count)
    proxy = attack.proxy_architecture if isinstance(attack, CleanLabelBackdoor) else None
    if proxy is not None and proxy not in architectures:
        raise ValueError(f"field 'proxy_architecture': {proxy!r} is not allowed, {one_of(architectures)}")


def _data_source(values: Mapping[str, Any], where: str) -> DataSource:
    name = values.get("source")
    if not isinstance(name, str) or name not in SOURCES:
        given = f"{name!r} is not allowed" if "source" in values else "a value is required"
        raise ExperimentError(f"{where}, field 'data.source': {given}, {one_of(SOURCES)}")
    return validate(SOURCES[name], values, where, within="data")
