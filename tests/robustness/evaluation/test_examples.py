from typing import Any

import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.evaluation.distances import DISTANCE_COLUMNS
from dioptra_assets.robustness.evaluation.examples import EXAMPLE_COLUMNS, RowKey, example_table

pytestmark = pytest.mark.quick

IDS = ["a", "b", "c", "d"]
LABELS = [0, 1, 2, 1]


def _predictions(predicted: list[int], ids: list[str] = IDS, labels: list[int] = LABELS) -> pd.DataFrame:
    probabilities = np.eye(3, dtype=np.float32)[predicted] * 0.7 + 0.1
    return pd.DataFrame(
        {
            "image_id": ids,
            "label": labels,
            "prediction": predicted,
            "confidence": np.float32(0.8),
            "margin": np.where(np.asarray(predicted) == labels, 1.0, -1.0).astype(np.float32),
            "probabilities": pd.Series(list(probabilities), dtype=object),
        }
    )


def _distances(ids: list[str] = IDS) -> pd.DataFrame:
    return pd.DataFrame({"image_id": ids, **{name: np.arange(len(ids), dtype=float) for name in DISTANCE_COLUMNS}})


def _table(defence: str = "none", **changes: Any) -> pd.DataFrame:
    arguments: dict[str, Any] = {
        "clean": _predictions([0, 1, 0, 1]),
        "adversarial": _predictions([0, 2, 2, 0]),
        "distances": _distances(),
    }
    return example_table(RowKey("le_net", "fgm_0.3", "shallow_net", defence), **(arguments | changes))


def test_a_row_says_what_happened_to_one_image():
    table = _table(defence="jpeg")
    assert list(table.columns) == list(EXAMPLE_COLUMNS)
    row = table.iloc[1].to_dict()
    assert {name: row[name] for name in ("image_id", "label", "source", "attack", "target", "defence")} == {
        "image_id": "b",
        "label": 1,
        "source": "le_net",
        "attack": "fgm_0.3",
        "target": "shallow_net",
        "defence": "jpeg",
    }
    assert (row["clean_prediction"], row["adversarial_prediction"], row["margin"], row["l2"]) == (1, 2, -1.0, 1.0)
    np.testing.assert_allclose(row["adversarial_probabilities"], [0.1, 0.1, 0.8])


def test_untargeted_success_leaves_out_what_was_wrong_before():
    # right and stays right; right and turns wrong; wrong before; right and turns wrong
    assert _table()["success"].tolist() == [False, True, pd.NA, True]
    assert _table()["target_class"].isna().all()


def test_targeted_success_is_the_target_class_and_leaves_out_its_own_images():
    aim = pd.Series([2, 2, 2, 0], index=IDS)
    table = _table(target_class=aim)
    assert table["success"].tolist() == [False, True, pd.NA, True]
    assert table["target_class"].tolist() == [2, 2, 2, 0]


def test_a_target_class_missing_at_its_own_images_is_no_untargeted_attack():
    aim = pd.Series([2, 2, pd.NA, 2], index=IDS, dtype="Int64")
    assert _table(target_class=aim)["success"].tolist() == [False, True, pd.NA, False]


def test_the_target_classes_are_joined_by_image_and_not_by_place():
    aim = pd.Series([0, 2, 2, 2], index=["d", "c", "b", "a"])
    assert _table(target_class=aim)["success"].tolist() == [False, True, pd.NA, True]


def test_rows_in_another_order_give_the_same_table():
    back = [3, 1, 0, 2]
    shuffled = _table(
        adversarial=_predictions([0, 2, 2, 0]).iloc[back].reset_index(drop=True),
        distances=_distances().iloc[back].reset_index(drop=True),
    )
    pd.testing.assert_frame_equal(shuffled, _table())


@pytest.mark.parametrize("argument", ["adversarial", "distances"])
def test_a_dropped_batch_is_an_error_that_names_its_images(argument):
    whole: dict[str, Any] = {"adversarial": _predictions([0, 2, 2, 0]), "distances": _distances()}
    short: dict[str, Any] = {argument: whole[argument].iloc[:2]}
    with pytest.raises(ValueError, match=r"le_net\|fgm_0.3 on shallow_net .* lack 2 of 4 images: c, d"):
        _table(**short)


def test_a_doubled_image_is_an_error_that_names_it():
    doubled = _predictions([0, 2, 2, 0, 0], [*IDS, "b"], [*LABELS, 1])
    with pytest.raises(ValueError, match="hold twice 1 of 4 images: b"):
        _table(adversarial=doubled)
    with pytest.raises(ValueError, match="the clean predictions hold twice 1 of 5 images: b"):
        _table(clean=doubled)


def test_a_foreign_image_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"beyond the testing set, 1 of 4 images: e"):
        _table(distances=_distances([*IDS, "e"]))


def test_labels_in_another_order_are_refused():
    swapped = _predictions([0, 2, 2, 0], labels=[1, 0, 2, 0])
    with pytest.raises(ValueError, match=r"3 images have another label .*a, b, d"):
        _table(adversarial=swapped)


def test_a_target_class_is_needed_for_every_image():
    with pytest.raises(ValueError, match="the target classes lack 1 of 4 images: d"):
        _table(target_class=pd.Series([2, 2, 2], index=IDS[:3]))


@pytest.mark.parametrize("target_class", [None, pd.Series([2, 2, pd.NA, 0], index=IDS, dtype="Int64")])
def test_the_table_survives_parquet(tmp_path, target_class):
    table = _table(target_class=target_class)
    table.to_parquet(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), table)
