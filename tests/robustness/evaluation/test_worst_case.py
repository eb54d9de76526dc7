"""The worst case over attacks: image by image, one threat model at a time, whatever the order of images and cells."""

import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.attacks import FastGradientMethod, PixelAttack, ProjectedGradientDescent
from dioptra_assets.robustness.evaluation.worst_case import WORST_CASE_COLUMNS, WORST_CASE_INPUTS, WorstCase, threat

pytestmark = pytest.mark.quick

CONFIGS = {
    "fgm_0.1": FastGradientMethod(eps=0.1),
    "fgm_0.3": FastGradientMethod(eps=0.3),
    "fgm_l2": FastGradientMethod(eps=0.3, norm=2),
    "pgd_0.1": ProjectedGradientDescent(eps=0.1),
    "pixel": PixelAttack(th=1),
}


def examples(
    attack: str, right: list[int], *, source: str = "a", defence: str = "none", clean: str = "1110"
) -> pd.DataFrame:
    """Four images of class 0, those of `right` still right under an attack on model `a`."""
    rows = [
        (str(i), 0, source, attack, "a", defence, 0 if clean[i] == "1" else 1, 0 if i in right else 1) for i in range(4)
    ]
    return pd.DataFrame(rows, columns=WORST_CASE_INPUTS)


def worst(*tables: pd.DataFrame) -> pd.DataFrame:
    collected = WorstCase(CONFIGS)
    for table in tables:
        collected.add(table)
    table = collected.table()
    assert list(table.columns) == list(WORST_CASE_COLUMNS)
    return table


def test_an_image_stands_where_it_stands_every_attack_of_the_threat_model_and_none() -> None:
    shuffled = examples("pgd_0.1", [0, 2, 3]).iloc[::-1]
    transferred = examples("fgm_0.1", [0, 1, 2, 3], source="b")
    table = worst(examples("fgm_0.1", [0, 1, 3]), shuffled, transferred, examples("fgm_0.3", [3]))
    assert list(table["threat"]) == ["Linf <= 0.1", "Linf <= 0.3"]
    # Each attack leaves three of four, together they leave one; what is wrong untouched is no success of the defender.
    assert list(table["robust_accuracy"]) == [0.25, 0.0]
    assert list(table["clean_accuracy"]) == [0.75, 0.75] and list(table["n"]) == [4, 4]
    assert list(table["attacks"]) == ["fgm_0.1 (made on a, b), pgd_0.1 (made on a)", "fgm_0.3 (made on a)"]
    assert list(table["one_step"]) == [False, True]
    assert (table["robust_accuracy_low"] <= table["robust_accuracy"]).all()
    assert (table["robust_accuracy_high"] > table["robust_accuracy"]).all()


def test_threat_models_and_defences_are_told_apart() -> None:
    behind = pd.concat([examples("fgm_0.1", [0, 1], defence="jpeg"), examples("fgm_0.1", [1, 2], defence="jpeg")])
    table = worst(examples("fgm_l2", [0]), examples("pixel", [0, 1]), behind).set_index(["defence", "threat"])
    assert table.loc[("none", "L2 <= 0.3"), "robust_accuracy"] == 0.25
    assert table.loc[("none", CONFIGS["pixel"].threat_model().budget), "robust_accuracy"] == 0.5
    assert table.loc[("jpeg", "Linf <= 0.1"), "robust_accuracy"] == 0.25, "oblivious and adaptive together"
    assert threat(CONFIGS["pgd_0.1"]) == threat(CONFIGS["fgm_0.1"])


def test_it_is_no_higher_than_the_lowest_attack_and_the_same_in_any_order() -> None:
    rng = np.random.default_rng(0)
    tables = [examples(key, np.flatnonzero(rng.random(4) < 0.7).tolist()) for key in ("fgm_0.1", "pgd_0.1")]
    forth, back = worst(*tables), worst(*reversed(tables))
    assert forth["robust_accuracy"].item() == back["robust_accuracy"].item()
    assert forth["robust_accuracy"].item() <= min((t["adversarial_prediction"] == 0).mean() for t in tables)


@pytest.mark.parametrize("other", [examples("pgd_0.1", [0])[:3], examples("pgd_0.1", [0], clean="0111")])
def test_cells_of_other_images_or_another_model_are_refused(other: pd.DataFrame) -> None:
    with pytest.raises(
        ValueError, match=r"a\|pgd_0.1 on a: was evaluated on different images, or a different model, than fgm_0.1"
    ):
        worst(examples("fgm_0.1", [0, 1]), other)


def test_without_any_attack_there_is_none() -> None:
    assert worst().empty
