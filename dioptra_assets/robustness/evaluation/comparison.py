"""Two models on the same images: who withstands what, and whether the difference is more than chance."""

import math

import numpy as np
import pandas as pd

from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE

COMPARISON_COLUMNS = {
    "attack": "attack config, each model attacked itself (white-box)",
    "n": "images, the same for both",
    "first": "robust accuracy of the first model",
    "second": "robust accuracy of the second model",
    "difference": "first less second",
    "low": "lower end of its 95 % interval",
    "high": "upper end of its 95 % interval",
    "first_only": "images that the first alone classifies right after the attack",
    "second_only": "images that the second alone classifies right after the attack",
    "p_value": "McNemar's exact test: how often chance alone parts models of equal accuracy so far",
}
Z = 1.959963984540054  # 95 %


def compare_images(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Image by image, what two models made of one attack, each attacked itself.

    Args:
        first: rows of an example table.
        second: rows of another, of the same images.

    Returns:
        `image_id`, `label` and, for each of `first` and `second`, `clean`, `adversarial` (classes), `confidence` (of
        the latter) and `right` after the attack.

    Raises:
        ValueError: when they are not of the same images.
    """
    sides = []
    for name, table in (("first", first), ("second", second)):
        rows = table[(table["target"] == table["source"]) & (table["defence"] == NO_DEFENCE)].set_index("image_id")
        side = pd.DataFrame(
            {
                "label": rows["label"],
                f"{name}_clean": rows["clean_prediction"],
                f"{name}_adversarial": rows["adversarial_prediction"],
                f"{name}_confidence": rows["adversarial_confidence"],
                f"{name}_right": rows["adversarial_prediction"] == rows["label"],
            }
        )
        sides.append(side)
    first, second = sides
    if set(first.index) != set(second.index) or not first["label"].equals(second["label"].reindex(first.index)):
        raise ValueError("the two models were not evaluated on the same images: compare within one testing set")
    return first.join(second.drop(columns="label")).reset_index()


def compare_rates(attack: str, images: pd.DataFrame) -> dict[str, object]:
    """One row of `COMPARISON_COLUMNS` from the images of one attack."""
    from scipy.stats import binomtest

    first, second = images["first_right"], images["second_right"]
    n, only_first, only_second = len(images), int((first & ~second).sum()), int((second & ~first).sum())
    low, high, _ = paired_interval(first.to_numpy(bool), second.to_numpy(bool))
    parted = only_first + only_second
    return {
        "attack": attack,
        "n": n,
        "first": float(first.mean()),
        "second": float(second.mean()),
        "difference": (only_first - only_second) / n,
        "low": low,
        "high": high,
        "first_only": only_first,
        "second_only": only_second,
        "p_value": float(binomtest(only_first, parted).pvalue) if parted else 1.0,
    }


def paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """The 95 % interval of the difference of two rates of the same images, and its standard error.

    It is Wald's for paired proportions with Agresti and Min's half image added to each of the four cells (Statistics in
    Medicine 2005, 24:729-740).

    Args:
        first: bool [n].
        second: bool [n], of the same images in the same order.

    Returns:
        Lower and upper end, in [-1, 1], and the standard error.
    """
    b, c, total = (first & ~second).sum() + 0.5, (second & ~first).sum() + 0.5, len(first) + 2
    centre, error = float((b - c) / total), math.sqrt(b + c - (b - c) ** 2 / total) / total
    return max(-1.0, centre - Z * error), min(1.0, centre + Z * error), error
