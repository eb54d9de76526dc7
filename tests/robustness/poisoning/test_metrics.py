"""C-ACC, ASR and RA against tables worked out by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.evaluation.metrics import proportion
from dioptra_assets.robustness.poisoning import (
    POISONING_EXAMPLE_COLUMNS,
    POISONING_METRIC_COLUMNS,
    BaselineBackdoor,
    CleanLabelBackdoor,
    poison_curve,
    poisoning_examples,
    poisoning_metrics,
)

pytestmark = pytest.mark.quick

CONFIG = BaselineBackdoor(target_class=2, poison_fraction=0.1)
CELL: dict[str, Any] = {"architecture": "le_net", "attack": "baseline_0.1", "model_kind": "poisoned"}
LABELS = [0, 0, 1, 1, 1, 2, 2, 2]


def predictions(labels: list[int], predicted: list[int]) -> pd.DataFrame:
    ids = [f"image-{row}" for row in range(len(labels))]
    return pd.DataFrame({"image_id": ids, "label": labels, "prediction": predicted, "confidence": 0.9})


CLEAN = predictions(LABELS, [0, 0, 1, 1, 0, 2, 2, 0])
TRIGGERED = predictions(LABELS, [2, 2, 2, 1, 0, 2, 2, 2])


def test_the_rates_count_whom_they_should() -> None:
    examples = poisoning_examples(clean=CLEAN, triggered=TRIGGERED, config=CONFIG, **CELL)
    assert list(examples) == list(POISONING_EXAMPLE_COLUMNS)
    row = poisoning_metrics(examples, seed=4).iloc[0]
    assert list(row.index) == list(POISONING_METRIC_COLUMNS)
    assert (row["n"], row["asr_n"], row["target_class"], row["seed"], row["defence"]) == (8, 5, 2, 4, "none")
    for rate, hits, n in (("clean_accuracy", 6, 8), ("asr", 3, 5), ("ra", 1, 5)):
        np.testing.assert_allclose([row[rate], row[f"{rate}_low"], row[f"{rate}_high"]], proportion(hits, n))


def test_a_model_that_gives_the_target_class_to_its_own_images_alone_has_no_asr() -> None:
    """Images of the target class, always right, would make an ASR of 3 / 8 if they counted."""
    perfect = predictions(LABELS, LABELS)
    examples = poisoning_examples(clean=perfect, triggered=perfect, config=CONFIG, **CELL)
    row = poisoning_metrics(examples, seed=0).iloc[0]
    assert (row["clean_accuracy"], row["asr"], row["ra"]) == (1, 0, 1)
    assert examples["success"].isna().tolist() == [label == 2 for label in LABELS]


def test_tables_are_joined_by_image_and_not_by_place() -> None:
    straight, shuffled = (
        poisoning_metrics(poisoning_examples(clean=CLEAN, triggered=table, config=CONFIG, **CELL), seed=0)
        for table in (TRIGGERED, TRIGGERED.sample(frac=1, random_state=1))
    )
    pd.testing.assert_frame_equal(straight, shuffled)


def test_without_eligible_images_the_rates_are_empty() -> None:
    only_target = predictions([2, 2], [2, 2])
    examples = poisoning_examples(clean=only_target, triggered=only_target, config=CONFIG, **CELL)
    row = poisoning_metrics(examples, seed=0).iloc[0]
    assert row["asr_n"] == 0
    assert np.isnan([row["asr"], row["ra"], row["asr_low"]]).all()


def test_another_order_of_the_classes_is_caught() -> None:
    swapped = TRIGGERED.assign(label=TRIGGERED["label"].map({0: 1, 1: 0, 2: 2}))
    with pytest.raises(ValueError, match="5 images have another label with trigger than without"):
        poisoning_examples(clean=CLEAN, triggered=swapped, config=CONFIG, **CELL)


def test_relabelled_triggered_images_are_caught() -> None:
    with pytest.raises(ValueError, match="keeps the true labels"):
        poisoning_examples(clean=CLEAN, triggered=TRIGGERED.assign(label=2), config=CONFIG, **CELL)


def test_tables_of_other_images_are_refused() -> None:
    for clean, triggered, message in (
        (CLEAN, TRIGGERED.iloc[:-1], "1 clean images are not among"),
        (CLEAN.iloc[1:], TRIGGERED, "1 triggered ones not among the clean .first 'image-0'"),
        (CLEAN, pd.concat([TRIGGERED, TRIGGERED.iloc[:1]]), "hold image 'image-0' twice"),
        (CLEAN.iloc[:0], TRIGGERED, "no clean predictions"),
    ):
        with pytest.raises(ValueError, match=message):
            poisoning_examples(clean=clean, triggered=triggered, config=CONFIG, **CELL)
    with pytest.raises(NonFiniteError, match="not finite"):
        poisoning_examples(clean=CLEAN.assign(confidence=np.nan), triggered=TRIGGERED, config=CONFIG, **CELL)


def test_examples_that_contradict_themselves_are_refused() -> None:
    examples = poisoning_examples(clean=CLEAN, triggered=TRIGGERED, config=CONFIG, **CELL)
    for broken in (examples.assign(eligible=True), examples.assign(success=True), examples.assign(target_class=1)):
        with pytest.raises(ValueError, match="do not follow"):
            poisoning_metrics(broken, seed=0)
    with pytest.raises(ValueError, match="twice"):
        poisoning_metrics(pd.concat([examples, examples.iloc[:1]]), seed=0)
    with pytest.raises(ValueError, match="without the columns \\['success'\\]"):
        poisoning_metrics(examples.drop(columns="success"), seed=0)


def test_every_cell_has_its_row() -> None:
    tables = [
        poisoning_examples(
            clean=CLEAN, triggered=TRIGGERED, config=CONFIG, **{**CELL, "model_kind": kind, "defence": defence}
        )
        for kind in ("poisoned", "clean control")
        for defence in ("none", "jpeg")
    ]
    table = poisoning_metrics(pd.concat(tables), seed=0)
    assert list(zip(table["model_kind"], table["defence"], strict=True)) == [
        ("poisoned", "none"),
        ("poisoned", "jpeg"),
        ("clean control", "none"),
        ("clean control", "jpeg"),
    ]


FRACTIONS = {"baseline_0.33": 0.33, "baseline_0.01": 0.01}
CONFIGS = {key: CONFIG.model_copy(update={"poison_fraction": fraction}) for key, fraction in FRACTIONS.items()}


def metrics_of(attack: str, kind: Any, hits: int) -> pd.DataFrame:
    triggered = predictions(LABELS, [2] * hits + LABELS[hits:])
    cell: dict[str, Any] = CELL | {"attack": attack, "model_kind": kind}
    return poisoning_metrics(poisoning_examples(clean=CLEAN, triggered=triggered, config=CONFIG, **cell), seed=0)


def test_the_curve_rises_from_the_clean_control() -> None:
    cells = [("baseline_0.33", "poisoned", 5), ("baseline_0.01", "poisoned", 2)]
    cells += [("baseline_0.33", "clean control", 0), ("baseline_0.01", "clean control", 0)]
    table = pd.concat([metrics_of(*cell) for cell in cells])
    curve = poison_curve(table, CONFIGS)
    assert curve["poison_fraction"].tolist() == [0, 0.01, 0.33]
    assert curve["asr"].tolist() == [0, 0.4, 1]
    assert curve["family"].unique().tolist() == ["baseline"]
    np.testing.assert_allclose(curve[["asr_low", "asr_high"]].to_numpy()[1], proportion(2, 5)[1:])


def test_configs_that_differ_in_more_than_the_fraction_are_curves_of_their_own() -> None:
    table = pd.concat([metrics_of("baseline_0.33", "poisoned", 5), metrics_of("baseline_0.01", "poisoned", 2)])
    other = CONFIGS["baseline_0.01"].model_copy(update={"target_class": 1})
    assert poison_curve(table, CONFIGS | {"baseline_0.01": other})["family"].nunique() == 2
    clean_label = CleanLabelBackdoor(target_class=2)
    curve = poison_curve(table, CONFIGS | {"baseline_0.01": clean_label})
    assert curve["family"].tolist() == ["baseline", "clean_label"]


def test_a_curve_of_doubled_points_or_unknown_configs_is_refused() -> None:
    once = metrics_of("baseline_0.33", "poisoned", 5)
    with pytest.raises(ValueError, match="appears twice"):
        poison_curve(pd.concat([once, once]), CONFIGS)
    with pytest.raises(ValueError, match=r"no poisoning config for \['baseline_0\.33'\]"):
        poison_curve(once, {})
