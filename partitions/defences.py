"""Defences: their name <-> typed config."""

import re
from collections.abc import Mapping
from typing import Any

from dioptra_assets.robustness.defences import DEFENCES, Defence
from partitions.attacks import by_method
from partitions.entries import ExperimentError, expand


def defence_configs(experiment: str, entries: Mapping[str, Any], limit: int | None = None) -> dict[str, Defence]:
    """The preprocessing defences of an experiment by name, sweeps expanded to at most `limit`.

    A defence's name is part of the names of its assets, `defended_set/NAME`, so it takes fewer characters than a
    partition key.

    Raises:
        ExperimentError: naming experiment, entry, field, value and what is allowed.
    """
    defences = expand(experiment, "defences", entries, by_method(DEFENCES), limit)
    for name, defence in defences.items():
        where = f"experiment {experiment!r}, defences entry {name!r}"
        if not re.fullmatch("[A-Za-z0-9_]{1,60}", name) or name == "none":
            raise ExperimentError(
                f"{where}: the name is part of the names of its assets and takes 1 to 60 of A-Z a-z 0-9 _ (and is not"
                " 'none'): give each value an entry of its own, `noise_01: {method: gaussian_augmentation, sigma: 0.1}`"
            )
        if not (defence.apply_fit or defence.apply_predict):
            raise ExperimentError(
                f"{where}: apply_fit and apply_predict are both false, so nothing is defended: set one"
            )
    return defences
