"""Attack configs: attack key <-> typed config. Each family has its own section, methods and keys."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from dioptra_assets.robustness.attacks import ATTACKS, Attack
from dioptra_assets.robustness.inversion.miface import INVERSIONS, ModelInversion
from dioptra_assets.robustness.poisoning import POISONINGS, Poisoning
from partitions.entries import expand, one_of

Family = Literal["evasion", "poisoning", "inversion"]
AttackConfig = Attack | Poisoning | ModelInversion

METHODS: Mapping[Family, Mapping[str, type[AttackConfig]]] = {
    "evasion": ATTACKS,
    "poisoning": POISONINGS,
    "inversion": INVERSIONS,
}
# Where an experiment file declares them.
SECTIONS: Mapping[Family, str] = {"evasion": "attacks", "poisoning": "poisonings", "inversion": "inversions"}


def attack_configs(
    experiment: str, family: Family, entries: Mapping[str, Any], limit: int | None = None
) -> dict[str, Any]:
    """The attack configs of one family of an experiment by attack key, sweeps expanded to at most `limit`.

    An entry's `method` may be left out where its name is one: `fgm: {eps: 0.3}`.

    Raises:
        ExperimentError: naming experiment, entry, field, value and what is allowed.
    """
    return expand(experiment, SECTIONS[family], entries, by_method(METHODS[family]), limit)


def attack_document(attack: BaseModel) -> dict[str, Any]:
    """An attack config as JSON values, every field given."""
    return attack.model_dump(mode="json")


def documents(entries: Mapping[str, BaseModel]) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a section as JSON values, in their order."""
    return [(key, attack_document(entry)) for key, entry in entries.items()]


def attack_of(document: Mapping[str, Any], family: Family = "evasion") -> Any:
    """The attack config that :func:`attack_document` wrote."""
    return METHODS[family][document["method"]].model_validate(dict(document))


def by_method(methods: Mapping[str, type[Any]]) -> Callable[[str, dict[str, Any]], tuple[type[Any], dict[str, Any]]]:
    """For `expand`: the type of an entry's config, by its `method` or else by its name."""

    def model_of(entry: str, parameters: dict[str, Any]) -> tuple[type[Any], dict[str, Any]]:
        method = parameters.get("method", entry)
        if not isinstance(method, str) or method not in methods:
            raise ValueError(f"field 'method': {method!r} is not allowed, {one_of(methods)}")
        return methods[method], {"method": method, **parameters}

    return model_of
