"""Evasion attacks: configs, and running one over an image set.

>>> parse_attack({"method": "fgm", "eps": 0.3}).threat_model().budget
'Linf <= 0.3, pixels in [0, 1]'
"""

from collections.abc import Mapping
from typing import Any

from dioptra_assets.robustness.attacks.art_any import AnyArtAttack
from dioptra_assets.robustness.attacks.base import (
    Attack,
    AttackedBatch,
    AttackInput,
    Perturbed,
    ThreatModel,
    perturb_set,
)
from dioptra_assets.robustness.attacks.fgm import FastGradientMethod
from dioptra_assets.robustness.attacks.pgd import BasicIterativeMethod, ProjectedGradientDescent
from dioptra_assets.robustness.attacks.pixel import PixelAttack, one_pixel_oracle
from dioptra_assets.robustness.attacks.square import SquareAttack
from dioptra_assets.robustness.attacks.threshold import ThresholdAttack
from dioptra_assets.robustness.errors import NonFiniteError

ATTACKS: dict[str, type[Attack]] = {
    "fgm": FastGradientMethod,
    "bim": BasicIterativeMethod,
    "pgd": ProjectedGradientDescent,
    "square": SquareAttack,
    "pixel": PixelAttack,
    "threshold": ThresholdAttack,
    "art": AnyArtAttack,
}


def parse_attack(entry: Mapping[str, Any]) -> Attack:
    """The attack config of one entry, which names its `method`.

    Raises:
        ValueError: for an unknown method, naming those that exist, or (pydantic.ValidationError) for a wrong field.
    """
    method = entry.get("method")
    if method not in ATTACKS:
        raise ValueError(f"method is {method!r}: allowed are {', '.join(sorted(ATTACKS))}")
    return ATTACKS[method].model_validate(dict(entry))


__all__ = [
    "ATTACKS",
    "AnyArtAttack",
    "Attack",
    "AttackInput",
    "AttackedBatch",
    "BasicIterativeMethod",
    "FastGradientMethod",
    "NonFiniteError",
    "Perturbed",
    "PixelAttack",
    "ProjectedGradientDescent",
    "SquareAttack",
    "ThreatModel",
    "ThresholdAttack",
    "one_pixel_oracle",
    "parse_attack",
    "perturb_set",
]
