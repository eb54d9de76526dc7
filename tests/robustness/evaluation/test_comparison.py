import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.evaluation.comparison import COMPARISON_COLUMNS, compare_images, compare_rates

pytestmark = pytest.mark.quick


def examples(right: list[bool], source: str = "le_net") -> pd.DataFrame:
    """An example table with a row of the model itself and one of another model for each image."""
    rows = [
        {"image_id": str(i), "label": 0, "source": source, "target": target, "defence": "none", "clean_prediction": 0}
        | {"clean_confidence": 1.0, "adversarial_prediction": 0 if one else 1, "adversarial_confidence": 0.5}
        for i, one in enumerate(right)
        for target in (source, "elsewhere")
    ]
    return pd.DataFrame(rows)


def rates(first: list[bool], second: list[bool]) -> dict[str, object]:
    return compare_rates("fgm", compare_images(examples(first), examples(second, "shallow_net")))


def test_images_are_paired_by_id_whatever_their_order() -> None:
    first, second = examples([True, False, True]), examples([True, True, False]).iloc[::-1]
    table = compare_images(first, second)
    assert list(table["image_id"]) == ["0", "1", "2"]
    assert list(table["first_right"]) == [True, False, True]
    assert list(table["second_right"]) == [True, True, False]


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="not evaluated on the same images"):
        compare_images(examples([True]), examples([True, True]))


def test_rates_and_what_parts_the_models() -> None:
    row = rates([True] * 6 + [False] * 4, [True] * 3 + [False] * 5 + [True] * 2)
    assert list(row) == list(COMPARISON_COLUMNS)
    assert (row["n"], row["first"], row["second"]) == (10, 0.6, 0.5)
    assert (row["first_only"], row["second_only"]) == (3, 2)
    assert row["difference"] == pytest.approx(0.1)
    assert row["p_value"] == pytest.approx(1.0)


def test_a_difference_in_one_direction_is_told_from_chance() -> None:
    row = rates([True] * 20, [True] * 8 + [False] * 12)
    assert row["p_value"] == pytest.approx(2 * 0.5**12)
    assert 0 < float(row["low"]) < 0.6 < float(row["high"]) <= 1  # type: ignore[arg-type]


def test_the_interval_holds_the_true_difference_in_19_of_20_samples() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        first, second = generator.random(60) < 0.8, generator.random(60) < 0.6
        row = rates(first.tolist(), second.tolist())
        held += float(row["low"]) <= 0.2 <= float(row["high"])  # type: ignore[arg-type]
    assert 0.92 < held / 300 < 0.99


def test_models_that_agree_on_every_image_do_not_differ() -> None:
    row = rates([True, False] * 20, [True, False] * 20)
    assert (row["difference"], row["p_value"]) == (0.0, 1.0)
    assert float(row["low"]) < 0 < float(row["high"])  # type: ignore[arg-type]
