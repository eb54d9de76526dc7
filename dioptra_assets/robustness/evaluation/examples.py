"""The example table: what an attack did to each image, as one target model sees it. Every rate is computed from it.

Why: docs/decisions/0011-the-example-table.md
"""

from typing import Any

import numpy as np
import pandas as pd

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.evaluation.distances import DISTANCE_COLUMNS

NO_DEFENCE = "none"
KEYS = ["source", "attack", "target", "defence", "adaptive"]

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
    *,
    clean: pd.DataFrame,
    adversarial: pd.DataFrame,
    distances: pd.DataFrame,
    source: str,
    attack: str,
    target: str,
    defence: str = NO_DEFENCE,
    adaptive: bool = False,
    target_class: pd.Series | None = None,
) -> pd.DataFrame:
    """Join what is known of each image, by image id and nothing else.

    Args:
        clean: `predict` of the target model on the testing set, behind the defence where there is one.
        adversarial: `predict` of the target model on the adversarial set, behind the defence where there is one.
        distances: `set_distances` of the testing set and the adversarial set: what the attacker changed.
        source: architecture the attack was computed on.
        attack: key of the attack config.
        target: architecture of the evaluated model.
        defence: name of the defence, or `none`.
        adaptive: whether the attack was computed on model and defence together.
        target_class: of a targeted attack, the class aimed at, indexed by image id; may be missing for an image that
            belongs to that class already. None for an untargeted attack.

    Returns:
        One row per image, in the order of `clean`, with the columns of `EXAMPLE_COLUMNS`. `target_class` is nullable
        Int64 and `success` nullable boolean.

    Raises:
        ValueError: when a table lacks an image, holds one too many or one twice (they are named), or when the labels
            of one image differ.
    """
    cell = f"{source}|{attack} on {target} (defence {defence}{', adaptive' if adaptive else ''})"
    ids: Any = clean["image_id"]
    before = _aligned(clean, ids, f"{cell}: the clean predictions")
    after = _aligned(adversarial, ids, f"{cell}: the adversarial predictions")
    moved = _aligned(distances, ids, f"{cell}: the distances")
    label = before["label"].to_numpy(np.int64)
    relabelled = label != after["label"].to_numpy(np.int64)
    if relabelled.any():
        raise ValueError(
            f"{cell}: {relabelled.sum()} images have another label in the adversarial predictions than in the clean "
            f"ones ({_some(ids[relabelled])}): the two sets number their classes or images differently"
        )
    targeted = target_class is not None
    if targeted:
        named = pd.DataFrame({"image_id": target_class.index, "target_class": target_class.to_numpy()})
        aim = _aligned(named, ids, f"{cell}: the target classes")["target_class"].reset_index(drop=True)
    else:
        aim = pd.Series(pd.NA, index=range(len(ids)))
    aim = aim.astype("Int64")
    clean_prediction = before["prediction"].to_numpy(np.int64)
    prediction = after["prediction"].to_numpy(np.int64)
    return pd.DataFrame(
        {
            "image_id": ids.to_numpy(),
            "label": label,
            "source": source,
            "attack": attack,
            "target": target,
            "defence": defence,
            "adaptive": adaptive,
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
    """Whether the attack reached its aim on each image; missing where it had nothing to do.

    Args:
        label: int [n].
        clean_prediction: int [n].
        adversarial_prediction: int [n].
        target_class: Int64 [n], read when targeted.
        targeted: whether the attack aims at a class.

    Returns:
        Nullable boolean [n]. Untargeted: missing where the clean prediction was wrong, else whether the adversarial one
        is. Targeted: missing where there is no target class or it is the label, else whether it is predicted.
    """
    if targeted:
        aim = target_class.fillna(-1).to_numpy(np.int64)
        reached, eligible = adversarial_prediction == aim, (aim >= 0) & (aim != label)
    else:
        reached, eligible = adversarial_prediction != label, clean_prediction == label
    return pd.Series(reached).astype("boolean").mask(~eligible)


def check_examples(examples: pd.DataFrame, classes: int, seed: int) -> None:
    """Refuse an example table that no rate should be computed from.

    Raises:
        NonFiniteError: when a prediction, confidence, margin or distance is NaN or infinite.
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
        raise ValueError(f"example table: {len(doubled)} rows stand twice, first {first}")
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
    # A targeted attack on images that all belong to its class has no target class to show, and no success either.
    targeted = bool(aim.notna().any() or success.isna().all())
    if not evasion_success(label, before, after, aim, targeted=targeted).equals(success):
        raise ValueError(f"{name}: success does not follow from label, predictions and target class")


def stack_probabilities(group: pd.DataFrame, classes: int) -> np.ndarray | None:
    """The adversarial probabilities of some examples, float32 [n, classes]; None where the table holds none.

    Raises:
        NonFiniteError: when one is NaN or infinite.
        ValueError: when some rows have none or too few, or the predicted class has not the largest: the model numbers
            its classes otherwise than the table.
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
    own: Any = table["image_id"]
    doubled = own[own.duplicated()].unique()
    missing = ids[~ids.isin(own)]
    foreign = own[~own.isin(ids)]
    for found, fault in ((doubled, "hold twice"), (missing, "lack"), (foreign, "hold, beyond the testing set,")):
        if len(found):
            raise ValueError(f"{what} {fault} {len(found)} of {len(ids)} images: {_some(found)}")
    return table.set_index("image_id").loc[ids]


def _some(ids: Any) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
