"""The example table: the effect of an attack on each image, as seen by one target model. Every rate comes from it.

Why: docs/decisions/0011-the-example-table.md
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.evaluation.distances import DISTANCE_COLUMNS

NO_DEFENCE = "none"


class RowKey(NamedTuple):
    """What the rows of one evaluation have in common.

    Attributes:
        source: architecture whose model the attack was computed on.
        attack: key of the attack config.
        target: architecture of the evaluated model.
        defence: name of the defence, or `none`.
        adaptive: whether the attack was computed on model and defence together.
    """

    source: str
    attack: str
    target: str
    defence: str = NO_DEFENCE
    adaptive: bool = False

    def __str__(self) -> str:
        adaptive = ", adaptive" if self.adaptive else ""
        return f"{self.source}|{self.attack} on {self.target} (defence {self.defence}{adaptive})"


KEYS = list(RowKey._fields)

EXAMPLE_COLUMNS: dict[str, str] = {
    "image_id": "the image, as in the testing set",
    "label": "true class, position in the class names",
    "source": "architecture whose model the attack was computed on",
    "attack": "attack config",
    "target": "architecture whose model is evaluated",
    "defence": "defence between attack and target model, or none",
    "adaptive": "the attack was computed on model and defence together, knowing both",
    "clean_prediction": "class the target model gives the untouched image, position in the class names",
    "clean_confidence": "softmax probability of clean_prediction, 0 to 1",
    "adversarial_prediction": "class the target model gives the attacked image, position in the class names",
    "adversarial_confidence": "softmax probability of adversarial_prediction, 0 to 1",
    "margin": "attacked image: logit of the true class less the largest other logit; negative is classified wrong",
    "target_class": "class a targeted attack aims at, position in the class names; empty when untargeted, and may be "
    "empty where it is the true class",
    "success": "untargeted: classified wrong after the attack, empty where it was wrong before; "
    "targeted: classified as the target class, empty where that is the true class",
    **DISTANCE_COLUMNS,
    "adversarial_probabilities": "softmax probabilities of the attacked image, one a class; empty above 100 classes",
}


def example_table(
    key: RowKey,
    *,
    clean: pd.DataFrame,
    adversarial: pd.DataFrame,
    distances: pd.DataFrame,
    target_class: pd.Series | None = None,
) -> pd.DataFrame:
    """Join predictions and distances by image id.

    Args:
        key: what is evaluated.
        clean: `predict` of the target model on the testing set, behind the defence if there is one.
        adversarial: `predict` of the target model on the adversarial set, behind the defence if there is one.
        distances: `set_distances` of the testing set and the adversarial set: what the attacker changed.
        target_class: for a targeted attack, the target class by image id. It may be missing for images that already
            belong to that class. None for an untargeted attack.

    Returns:
        One row per image, in the order of `clean`, with the columns of `EXAMPLE_COLUMNS`. `target_class` is nullable
        Int64 and `success` nullable boolean.

    Raises:
        ValueError: a table lacks an image, has an extra image or has one twice (the message names them), or the labels
            of an image differ.
    """
    ids: Any = clean["image_id"]
    before = _aligned(clean, ids, f"{key}: the clean predictions")
    after = _aligned(adversarial, ids, f"{key}: the adversarial predictions")
    moved = _aligned(distances, ids, f"{key}: the distances")
    label = before["label"].to_numpy(np.int64)
    relabelled = label != after["label"].to_numpy(np.int64)
    if relabelled.any():
        raise ValueError(
            f"{key}: {relabelled.sum()} images have another label in the adversarial predictions than in the clean "
            f"ones ({_some(ids[relabelled])}): the two sets number their classes or images differently"
        )
    targeted = target_class is not None
    if targeted:
        named = pd.DataFrame({"image_id": target_class.index, "target_class": target_class.to_numpy()})
        aim = _aligned(named, ids, f"{key}: the target classes")["target_class"].reset_index(drop=True)
    else:
        aim = pd.Series(pd.NA, index=range(len(ids)))
    aim = aim.astype("Int64")
    clean_prediction = before["prediction"].to_numpy(np.int64)
    prediction = after["prediction"].to_numpy(np.int64)
    return pd.DataFrame(
        {
            "image_id": ids.to_numpy(),
            "label": label,
            **key._asdict(),
            "clean_prediction": clean_prediction,
            "clean_confidence": before["confidence"].to_numpy(),
            "adversarial_prediction": prediction,
            "adversarial_confidence": after["confidence"].to_numpy(),
            "margin": after["margin"].to_numpy(),
            "target_class": aim,
            "success": evasion_success(label, clean_prediction, prediction, aim, targeted=targeted),
            **{name: moved[name].to_numpy() for name in DISTANCE_COLUMNS},
            "adversarial_probabilities": after["probabilities"].to_numpy(),
        }
    )


def evasion_success(
    label: np.ndarray,
    clean_prediction: np.ndarray,
    adversarial_prediction: np.ndarray,
    target_class: pd.Series,
    *,
    targeted: bool,
) -> pd.Series:
    """Whether the attack succeeded on each image; missing where the image does not count.

    Args:
        label: int [n].
        clean_prediction: int [n].
        adversarial_prediction: int [n].
        target_class: Int64 [n], read when targeted.
        targeted: whether the attack aims at a class.

    Returns:
        Nullable boolean [n]. Untargeted: missing if the clean prediction was wrong, else whether the adversarial one is
        wrong. Targeted: missing if there is no target class or it is the label, else whether it is predicted.
    """
    if targeted:
        aim = target_class.fillna(-1).to_numpy(np.int64)
        reached, eligible = adversarial_prediction == aim, (aim >= 0) & (aim != label)
    else:
        reached, eligible = adversarial_prediction != label, clean_prediction == label
    return pd.Series(reached).astype("boolean").mask(~eligible)


def check_examples(examples: pd.DataFrame, classes: int, seed: int) -> None:
    """Refuse an example table that must not be used to compute rates.

    Raises:
        NonFiniteError: a prediction, confidence, margin or distance is NaN or infinite.
        ValueError: see `metrics.metric_table`.
    """
    table: Any = examples
    missing = [name for name in EXAMPLE_COLUMNS if name not in examples]
    if missing or examples.empty:
        raise ValueError(f"example table of {len(examples)} rows, without the columns {missing}: nothing to measure")
    predictions = ["label", "clean_prediction", "adversarial_prediction"]
    numbers = [*predictions, "clean_confidence", "adversarial_confidence", "margin", *DISTANCE_COLUMNS]
    for name in ["image_id", *KEYS, *numbers]:
        number = name in numbers
        good = np.isfinite(table[name].to_numpy(np.float64, na_value=np.nan)) if number else table[name].notna()
        if not good.all():
            raise NonFiniteError(
                f"example table: {(~good).sum()} of {len(table)} rows have a non-finite or empty {name}"
            )
    for name in predictions:
        if not table[name].between(0, classes - 1).all():
            raise ValueError(f"example table: {name} holds a class beyond the {classes} that are named")
    if "seed" in table and set(table["seed"]) != {seed}:
        raise ValueError(f"example table: holds the seeds {sorted(set(table['seed']))}, expected {seed} alone")
    doubled = table[table.duplicated(["image_id", *KEYS])]
    if len(doubled):
        first = " | ".join(map(str, doubled[["image_id", *KEYS]].iloc[0]))
        raise ValueError(f"example table: {len(doubled)} rows appear twice, first {first}")
    if len(table.drop_duplicates(["image_id", "label"])) != table["image_id"].nunique():
        raise ValueError("example table: one image has two labels")
    for (source, attack), cell in table.groupby(["source", "attack"], sort=False):
        _check_cell(cell, f"example table of {source}|{attack}", predictions)


def _check_cell(cell: Any, name: str, predictions: list[str]) -> None:
    counts = cell.groupby(["target", "defence", "adaptive"], sort=False).size()
    if (counts != cell["image_id"].nunique()).any():
        by_target = ", ".join(f"{'|'.join(map(str, key))} {count}" for key, count in counts.items())
        raise ValueError(f"{name}: not every target has every image (images by target|defence|adaptive: {by_target})")
    aim = cell["target_class"].astype("Int64").reset_index(drop=True)
    success = cell["success"].astype("boolean").reset_index(drop=True)
    label, before, after = (cell[column].to_numpy(np.int64) for column in predictions)
    # A targeted attack on images that all belong to its target class has neither target classes nor successes.
    targeted = bool(aim.notna().any() or success.isna().all())
    if not evasion_success(label, before, after, aim, targeted=targeted).equals(success):
        raise ValueError(f"{name}: success does not follow from label, predictions and target class")


def stack_probabilities(group: pd.DataFrame, classes: int) -> np.ndarray | None:
    """The adversarial probabilities of some examples, float32 [n, classes]; None if the table holds none.

    Raises:
        NonFiniteError: a probability is NaN or infinite.
        ValueError: some rows have none or too few, or the predicted class does not have the largest one: the model
            numbers its classes differently from the table.
    """
    column: Any = group["adversarial_probabilities"]
    name = "|".join(map(str, group[KEYS].iloc[0]))
    if column.isna().all():
        return None
    if column.isna().any() or (column.map(len) != classes).any():
        raise ValueError(f"{name}: adversarial_probabilities must hold {classes} numbers in every row, or none in any")
    probabilities = np.concatenate(column.tolist()).reshape(len(group), classes)
    if not np.isfinite(probabilities).all():
        raise NonFiniteError(f"{name}: non-finite adversarial_probabilities")
    predicted = np.take_along_axis(probabilities, group["adversarial_prediction"].to_numpy(np.int64)[:, None], axis=1)
    if (predicted[:, 0] < probabilities.max(axis=1)).any():
        raise ValueError(f"{name}: adversarial_probabilities order the classes otherwise than adversarial_prediction")
    return probabilities


def _aligned(table: pd.DataFrame, ids: Any, what: str) -> Any:
    """The rows of `table` in the order of `ids`, exactly one for each."""
    images: Any = table["image_id"]
    doubled = images[images.duplicated()].unique()
    missing = ids[~ids.isin(images)]
    foreign = images[~images.isin(ids)]
    for wrong, fault in ((doubled, "hold twice"), (missing, "lack"), (foreign, "hold, beyond the testing set,")):
        if len(wrong):
            raise ValueError(f"{what} {fault} {len(wrong)} of {len(ids)} images: {_some(wrong)}")
    return table.set_index("image_id").loc[ids]


def _some(ids: Any) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
