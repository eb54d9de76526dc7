"""An experiment: what a YAML file declares, typed and checked as a whole."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dioptra_assets.robustness.attacks import Attack
from dioptra_assets.robustness.data import AnySource, DataSource
from dioptra_assets.robustness.training import TrainingRecipe
from partitions.architectures import training_recipes
from partitions.attacks import attack_configs
from partitions.configs import ExperimentError, one_of, validate

SOURCES: dict[str, type[DataSource]] = {
    source.model_fields["source"].default: source for source in get_args(get_args(AnySource)[0])
}


def _owner(owner: str) -> str:
    if not re.fullmatch(r"team:.+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", owner):
        raise ValueError(f"{owner!r} is not allowed, an owner is a person (jane@example.org) or a team (team:red)")
    return owner


class ExperimentFile(BaseModel):
    """The fields of an experiment file, below `attributes`.

    Attributes:
        description: one or two sentences, shown in the UI and on the report.
        seed: the one seed that everything random in the experiment is derived from.
        owners: people (`jane@example.org`) or teams (`team:red`) shown beside every asset.
        data: where the images come from: `source` and its parameters.
        architectures: architecture key -> training recipe.
        attacks: attack key -> evasion attack config.
        log_sets: also log every adversarial set to its MLflow run, as `testing_adversarial_METHOD.tar.gz`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    owners: tuple[Annotated[str, AfterValidator(_owner)], ...] = ()
    data: dict[str, Any]
    architectures: dict[str, Any] = Field(min_length=1)
    attacks: dict[str, Any] = Field(default_factory=dict)
    log_sets: bool = False


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
        log_sets: whether adversarial sets are logged to MLflow as archives.
    """

    name: str
    description: str
    seed: int
    owners: tuple[str, ...]
    source: DataSource
    architectures: dict[str, TrainingRecipe]
    attacks: dict[str, Attack]
    log_sets: bool


def parse_experiment(name: str, attributes: Mapping[str, Any]) -> ExperimentSpec:
    """Check everything that an experiment file says.

    Raises:
        ExperimentError: a sentence for each mistake, with experiment, entry, field, value and what is allowed.
    """
    where = f"experiment {name!r}"
    # A Dagster group takes no other characters.
    if not re.fullmatch("[A-Za-z0-9_]{1,100}", name):
        raise ExperimentError(f"{where}: the name of its folder is not allowed, it takes 1 to 100 of A-Z a-z 0-9 _")
    file = validate(ExperimentFile, attributes, where)
    source = _data_source(file.data, where)
    attacks = attack_configs(name, file.attacks)
    for key, attack in attacks.items():
        if (count := source.class_count()) is not None:
            try:
                attack.check_classes(count)
            except ValueError as error:
                raise ExperimentError(f"{where}, attacks entry {key!r}: {error}") from error
    return ExperimentSpec(
        name=name,
        description=file.description,
        seed=file.seed,
        owners=file.owners,
        source=source,
        architectures=training_recipes(name, file.architectures, source),
        attacks=attacks,
        log_sets=file.log_sets,
    )


def _data_source(values: Mapping[str, Any], where: str) -> DataSource:
    name = values.get("source")
    if not isinstance(name, str) or name not in SOURCES:
        given = f"{name!r} is not allowed" if "source" in values else "a value is required"
        raise ExperimentError(f"{where}, field 'data.source': {given}, {one_of(SOURCES)}")
    return validate(SOURCES[name], values, where, within="data")


def refuse_repeated_names(path: Path) -> None:
    """Refuse a YAML file in which one mapping holds a name twice: YAML readers keep the last and say nothing.

    Raises:
        ExperimentError: naming file, line and name.
    """
    pending: list[yaml.Node] = [node for node in yaml.compose_all(path.read_text("utf-8"), yaml.SafeLoader) if node]
    visited: set[int] = set()  # an alias leads to one node many times, or round in a circle
    while pending:
        node = pending.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                pending.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ExperimentError(
                        f"experiment {path.parent.name!r}: the name {key.value!r} is given twice in {path.name}, again"
                        f" in line {line}; each entry and field needs a name of its own"
                    )
                seen.add(key.value)
