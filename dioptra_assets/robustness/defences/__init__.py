"""Preprocessing defences: configs, and running one over an image set.

>>> parse_defence({"method": "jpeg_compression", "quality": 75}).describe()
'JPEG of quality 75'
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from dioptra_assets.robustness.defences.adaptive import DEFAULT_EOT_SAMPLES, DefendedModel, defended_model
from dioptra_assets.robustness.defences.base import (
    Defence,
    defend_set,
    defended,
    defended_training_set,
    split_before_copies,
)
from dioptra_assets.robustness.defences.gaussian_augmentation import GaussianAugmentation
from dioptra_assets.robustness.defences.jpeg import JpegCompression
from dioptra_assets.robustness.defences.spatial_smoothing import SpatialSmoothing

DEFENCES: dict[str, type[Defence]] = {
    "spatial_smoothing": SpatialSmoothing,
    "jpeg_compression": JpegCompression,
    "gaussian_augmentation": GaussianAugmentation,
}

# The type of a defence entry in a config.
AnyDefence = Annotated[SpatialSmoothing | JpegCompression | GaussianAugmentation, Field(discriminator="method")]


def parse_defence(entry: Mapping[str, Any]) -> Defence:
    """The defence config of one entry, which names its `method`.

    Raises:
        ValueError: for an unknown method, naming those that exist, or (pydantic.ValidationError) for a wrong field.
    """
    method = entry.get("method")
    if method not in DEFENCES:
        raise ValueError(f"method is {method!r}: allowed are {', '.join(sorted(DEFENCES))}")
    return DEFENCES[method].model_validate(dict(entry))


__all__ = [
    "DEFAULT_EOT_SAMPLES",
    "DEFENCES",
    "AnyDefence",
    "Defence",
    "DefendedModel",
    "GaussianAugmentation",
    "JpegCompression",
    "SpatialSmoothing",
    "defend_set",
    "defended",
    "defended_model",
    "defended_training_set",
    "parse_defence",
    "split_before_copies",
]
