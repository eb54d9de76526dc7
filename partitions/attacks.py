"""Attack configs: attack key <-> typed config."""

from collections.abc import Mapping
from typing import Any

from dioptra_assets.robustness.attacks import ATTACKS, Attack, parse_attack
from partitions.configs import expand, one_of


def attack_configs(experiment: str, entries: Mapping[str, Any]) -> dict[str, Attack]:
    """The evasion attack configs of an experiment by attack key, sweeps expanded.

    An entry's `method` may be left out where its name is one: `fgm: {eps: 0.3}`.

    Raises:
        ExperimentError: naming experiment, entry, field, value and what is allowed.
    """
    return expand(experiment, "attacks", entries, _model_of)


def attack_document(attack: Attack) -> dict[str, Any]:
    """An attack config as JSON values, every field given."""
    return attack.model_dump(mode="json")


def attack_of(document: Mapping[str, Any]) -> Attack:
    """The attack config that :func:`attack_document` wrote."""
    return parse_attack(document)


def _model_of(entry: str, parameters: dict[str, Any]) -> tuple[type[Attack], dict[str, Any]]:
    method = parameters.get("method", entry)
    if not isinstance(method, str) or method not in ATTACKS:
        raise ValueError(f"field 'method': {method!r} is not allowed, {one_of(ATTACKS)}")
    return ATTACKS[method], {"method": method, **parameters}
