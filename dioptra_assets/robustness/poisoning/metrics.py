"""How well a backdoor works: what a model answers to the clean and to the triggered test images."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
from dioptra_assets.robustness.evaluation.metrics import proportion
from dioptra_assets.robustness.poisoning.base import Poisoning

ModelKind = Literal["poisoned", "clean control"]
CLEAN_CONTROL: ModelKind = "clean control"
CELL = ["architecture", "attack", "model_kind", "defence"]

_CELL_COLUMNS = {
    "architecture": "architecture of the evaluated model",
    "attack": "poisoning config that made the trigger, and poisoned the model",
    "model_kind": "poisoned, or clean control: the same architecture trained on the untouched training set",
    "defence": "defence between images and model, or none",
}
POISONING_EXAMPLE_COLUMNS: dict[str, str] = {
    "image_id": "the image, as in the testing set",
    "label": "true class, position in the class names",
    **_CELL_COLUMNS,
    "target_class": "class the trigger is to lead to, position in the class names",
    "eligible": "the true class is not the target class: the image counts in asr and ra",
    "clean_prediction": "class the model gives the image without trigger, position in the class names",
    "clean_confidence": "softmax probability of clean_prediction, 0 to 1",
    "triggered_prediction": "class the model gives the image with trigger, position in the class names",
    "triggered_confidence": "softmax probability of triggered_prediction, 0 to 1",
    "success": "eligible, and with trigger classified as the target class; empty where not eligible",
}
POISONING_RATES: dict[str, str] = {
    "clean_accuracy": "C-ACC: share of all n images classified right without trigger",
    "asr": "attack success rate: share of the asr_n eligible images classified as the target class with trigger",
    "ra": "robust accuracy: share of the asr_n eligible images still classified right with trigger",
}
POISONING_METRIC_COLUMNS: dict[str, str] = {
    **_CELL_COLUMNS,
    "target_class": POISONING_EXAMPLE_COLUMNS["target_class"],
    "n": "test images evaluated",
    "asr_n": "eligible images: those whose true class is not the target class; they count in asr and ra",
    "seed": "seed of the cell",
    **{
        name: text
        for rate, description in POISONING_RATES.items()
        for name, text in (
            (rate, f"{description}, 0 to 1{'' if rate == 'clean_accuracy' else '; empty when asr_n is 0'}"),
            (f"{rate}_low", f"lower bound of the interval of {rate} (95 %, Wilson score), 0 to 1"),
            (f"{rate}_high", f"upper bound of the interval of {rate} (95 %, Wilson score), 0 to 1"),
        )
    },
}


def poisoning_examples(
    *,
    clean: pd.DataFrame,
    triggered: pd.DataFrame,
    config: Poisoning,
    architecture: str,
    attack: str,
    model_kind: ModelKind,
    defence: str = NO_DEFENCE,
) -> pd.DataFrame:
    """Join what one model says of each test image without and with the trigger, by image id and nothing else.

    Args:
        clean: `predict` of the model on the testing set, defended where there is a defence.
        triggered: `predict` of the same model on the triggered testing set, defended in the same way.
        config: the attack.
        architecture: architecture of the model.
        attack: key of the poisoning config.
        model_kind: whether the model was trained on the poisoned set or is the clean control.
        defence: name of the defence, or `none`.

    Returns:
        One row per image, in the order of `clean`, with the columns of `POISONING_EXAMPLE_COLUMNS`; `success` is
        nullable boolean.

    Raises:
        NonFiniteError: when a confidence is not finite.
        ValueError: when a table is empty, lacks an image, holds one too many or one twice, or the labels of one image
            differ, as they do where a set was relabelled or numbers its classes otherwise.
    """
    cell = f"{architecture}|{attack} ({model_kind}, defence {defence})"
    ids: Any = clean["image_id"]
    if clean.empty:
        raise ValueError(f"{cell}: no clean predictions, nothing to measure")
    for name, table in (("clean", clean), ("triggered", triggered)):
        own: Any = table["image_id"]
        if own.duplicated().any():
            raise ValueError(f"{cell}: the {name} predictions hold image {own[own.duplicated()].iloc[0]!r} twice")
        if not np.isfinite(table["confidence"].to_numpy(np.float64)).all():
            raise NonFiniteError(f"{cell}: the {name} predictions hold a confidence that is not finite")
    other: Any = triggered["image_id"]
    missing, foreign = ids[~ids.isin(other)], other[~other.isin(ids)]
    if len(missing) or len(foreign):
        first = missing.iloc[0] if len(missing) else foreign.iloc[0]
        raise ValueError(
            f"{cell}: {len(missing)} clean images are not among the triggered ones, and {len(foreign)} triggered ones "
            f"not among the clean (first {first!r}): predict the same testing set twice"
        )
    after: Any = triggered.set_index("image_id").loc[ids]
    label = clean["label"].to_numpy(np.int64)
    relabelled = label != after["label"].to_numpy(np.int64)
    if relabelled.any():
        raise ValueError(
            f"{cell}: {relabelled.sum()} images have another label with trigger than without (first "
            f"{ids[relabelled].iloc[0]!r}): a triggered testing set keeps the true labels and the order of the classes"
        )
    eligible, prediction = label != config.target_class, after["prediction"].to_numpy(np.int64)
    success = pd.Series(prediction == config.target_class).astype("boolean").mask(~eligible)
    return pd.DataFrame(
        {
            "image_id": ids.to_numpy(),
            "label": label,
            "architecture": architecture,
            "attack": attack,
            "model_kind": model_kind,
            "defence": defence,
            "target_class": config.target_class,
            "eligible": eligible,
            "clean_prediction": clean["prediction"].to_numpy(np.int64),
            "clean_confidence": clean["confidence"].to_numpy(),
            "triggered_prediction": prediction,
            "triggered_confidence": after["confidence"].to_numpy(),
            "success": success,
        }
    )


def poisoning_metrics(examples: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Aggregate the examples of one or more cells.

    Args:
        examples: rows of :func:`poisoning_examples`.
        seed: the seed of the cell.

    Returns:
        One row per (architecture, attack, model kind, defence), with the columns of `POISONING_METRIC_COLUMNS`.
        Intervals are Wilson scores (Wilson 1927).

    Raises:
        ValueError: when the table is empty, lacks a column, holds an image twice in a cell, or its `eligible` and
            `success` do not follow from labels and predictions.
    """
    missing = [name for name in POISONING_EXAMPLE_COLUMNS if name not in examples]
    if missing or examples.empty:
        raise ValueError(f"poisoning examples: {len(examples)} rows, without the columns {missing}: nothing to measure")
    rows, table = [], examples
    if table.duplicated(["image_id", *CELL]).any():
        raise ValueError("poisoning examples: an image appears twice in one cell")
    for key, group in table.groupby(CELL, sort=False):
        targets = group["target_class"].unique().tolist()
        eligible = (group["label"] != group["target_class"]).to_numpy(bool)
        hits = (group["triggered_prediction"] == group["target_class"]).to_numpy(bool)
        success = pd.Series(hits).astype("boolean").mask(~eligible)
        given = group["success"].astype("boolean").reset_index(drop=True)
        if len(targets) > 1 or (eligible != group["eligible"]).any() or not success.equals(given):
            raise ValueError(
                f"poisoning examples of {'|'.join(map(str, key))}: eligible and success do not follow from label, "
                f"prediction and one target class"
            )
        right, kept = (group[f"{what}_prediction"] == group["label"] for what in ("clean", "triggered"))
        asr_n = int(eligible.sum())
        estimates = {
            "clean_accuracy": proportion(int(right.sum()), len(group)),
            "asr": proportion(int(hits[eligible].sum()), asr_n),
            "ra": proportion(int(kept[eligible].sum()), asr_n),
        }
        row: dict[str, Any] = dict(zip(CELL, key, strict=True))
        row |= {"target_class": targets[0], "n": len(group), "asr_n": asr_n, "seed": seed}
        for rate, estimate in estimates.items():
            row.update(zip((rate, f"{rate}_low", f"{rate}_high"), estimate, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)[list(POISONING_METRIC_COLUMNS)]


def poison_curve(metrics: pd.DataFrame, configs: Mapping[str, Poisoning], *, defence: str = NO_DEFENCE) -> pd.DataFrame:
    """Attack success rate and clean accuracy against the poisoned fraction, one curve per architecture and family.

    A family is the poisoning configs that differ in poison_fraction (and seed) alone; it is named after its method, and
    after the keys of its configs where one method has several families.

    Args:
        metrics: rows of :func:`poisoning_metrics`, of any cells.
        configs: poisoning config by key, for every attack in `metrics`.
        defence: which defence stands before the models.

    Returns:
        Rows by architecture, family and rising fraction: `architecture`, `family`, `attack`, `poison_fraction` (share
        of the eligible rows), `asr`, `asr_low`, `asr_high`, `asr_n`, `clean_accuracy`, `clean_accuracy_low`,
        `clean_accuracy_high`, `n`, `seed`. A curve begins with fraction 0, the clean control beside its smallest
        fraction, where there is one and no model was trained with fraction 0.

    Raises:
        ValueError: when an attack has no config, or one point of a curve was measured twice.
    """
    unknown = sorted(set(metrics["attack"]) - set(configs))
    if unknown:
        raise ValueError(f"poison curve: no poisoning config for {unknown}")
    chosen: Any = metrics[metrics["defence"] == defence]
    family = _families({key: configs[key] for key in dict.fromkeys(chosen["attack"])})
    points = chosen.assign(
        family=[family[key] for key in chosen["attack"]],
        poison_fraction=[configs[key].poison_fraction for key in chosen["attack"]],
    )
    curve = ["architecture", "family"]
    doubled = points[points.duplicated([*curve, "poison_fraction", "model_kind"])]
    if len(doubled):
        first = " | ".join(map(str, doubled[[*curve, "poison_fraction", "model_kind"]].iloc[0]))
        raise ValueError(f"poison curve: {first} appears twice, in a table of the seeds {sorted(set(doubled['seed']))}")
    points = points.sort_values([*curve, "poison_fraction"])
    control = points[points["model_kind"] == CLEAN_CONTROL].drop_duplicates(curve).assign(poison_fraction=0.0)
    poisoned = points[points["model_kind"] != CLEAN_CONTROL]
    # A model trained with fraction 0 stands before the control, which is dropped then.
    table = pd.concat([poisoned, control]).drop_duplicates([*curve, "poison_fraction"])
    rates = [f"{rate}{bound}" for rate in ("asr", "clean_accuracy") for bound in ("", "_low", "_high")]
    columns = [*curve, "attack", "poison_fraction", *rates[:3], "asr_n", *rates[3:], "n", "seed"]
    return table.sort_values([*curve, "poison_fraction"], ignore_index=True)[columns]


def _families(configs: Mapping[str, Poisoning]) -> dict[str, str]:
    """Attack key -> name of the family of its config."""
    members: dict[str, list[str]] = {}
    for key, config in configs.items():
        members.setdefault(config.model_dump_json(exclude={"poison_fraction", "seed"}), []).append(key)
    methods = [configs[keys[0]].method for keys in members.values()]
    return {
        key: configs[key].method if methods.count(configs[key].method) == 1 else ", ".join(keys)
        for keys in members.values()
        for key in keys
    }
