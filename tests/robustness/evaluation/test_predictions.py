from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.evaluation.predictions import MAX_PROBABILITY_CLASSES, predict
from dioptra_assets.robustness.image_set import ImageSet

pytestmark = pytest.mark.quick

CLASSES = ("zero", "one", "two")


def _model(classes: int = 3) -> Any:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(classes, name="logits")], name="small"
    )


def _set(n: int, classes: tuple[str, ...] = CLASSES) -> ImageSet:
    rng = np.random.default_rng(5)
    return ImageSet.from_arrays(
        rng.random((n, 4, 4, 1), np.float32), rng.integers(0, len(classes), n), classes, name="digits/testing_set"
    )


def test_every_image_gets_one_row_and_the_last_partial_batch_is_kept():
    table = predict(_model(), _set(11), batch_size=4)
    assert table["image_id"].tolist() == [f"{i:06d}" for i in range(11)]
    assert table["label"].tolist() == _set(11).labels.tolist()
    assert [str(table[name].dtype) for name in ("label", "prediction", "confidence", "margin")] == [
        "int64",
        "int64",
        "float32",
        "float32",
    ]


def test_confidence_margin_and_probabilities_follow_from_the_logits():
    model, image_set = _model(), _set(9)
    images, labels = image_set.to_numpy()
    logits = np.asarray(model(images), np.float64)
    table = predict(model, image_set, batch_size=4)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(table["prediction"], logits.argmax(axis=1))
    np.testing.assert_allclose(np.stack(table["probabilities"].tolist()), softmax, atol=1e-6)
    np.testing.assert_allclose(table["confidence"], softmax.max(axis=1), atol=1e-6)
    margin = [row[y] - max(np.delete(row, y)) for row, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(table["margin"], margin, atol=1e-5)
    assert ((table["margin"] < 0) == (table["prediction"] != table["label"])).all()


def test_the_batch_size_does_not_change_the_predictions():
    one, many = predict(_model(), _set(7), batch_size=1), predict(_model(), _set(7), batch_size=100)
    pd.testing.assert_frame_equal(one.drop(columns="probabilities"), many.drop(columns="probabilities"), atol=1e-6)


def test_probabilities_are_left_out_above_the_class_limit(tmp_path):
    classes = tuple(f"c{i}" for i in range(MAX_PROBABILITY_CLASSES + 1))
    table = predict(_model(len(classes)), _set(3, classes))
    assert table["probabilities"].isna().all()
    table.to_parquet(tmp_path / "table.parquet")


def test_probabilities_survive_parquet_bit_for_bit(tmp_path):
    table = predict(_model(), _set(5))
    table.to_parquet(tmp_path / "table.parquet")
    back = pd.read_parquet(tmp_path / "table.parquet")
    assert back["probabilities"].iloc[0].dtype == np.float32
    np.testing.assert_array_equal(np.stack(back["probabilities"].tolist()), np.stack(table["probabilities"].tolist()))


def test_a_model_that_returns_nan_is_an_error_that_names_set_count_and_images():
    class Broken:
        def __call__(self, images, training=False):
            first: Any = keras.ops.take(keras.ops.reshape(images, (-1, 16)), [0, 1, 2], axis=1)
            return keras.ops.where(keras.ops.greater(first, 0.5), np.float32("nan"), first)

    image_set = _set(10)
    bad = np.flatnonzero((image_set.to_numpy()[0].reshape(10, 16)[:, :3] > 0.5).any(axis=1))
    with pytest.raises(NonFiniteError, match=rf"testing_set: non-finite logits for {len(bad)} of 10 .*00000{bad[0]}"):
        predict(Broken(), image_set, batch_size=3)


def test_a_nan_pixel_that_the_model_swallows_is_an_error_all_the_same():
    image_set = _set(4)
    images, labels = image_set.to_numpy()
    images[2, 0, 0, 0] = np.nan

    def swallow(images, training=False):
        return keras.ops.zeros_like(keras.ops.reshape(images, (-1, 16)))

    with pytest.raises(NonFiniteError, match=r"non-finite pixels for 1 of 4 images \(000002\)"):
        predict(swallow, ImageSet.from_arrays(images, labels, tuple("abcdefghijklmnop")))


def test_a_model_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"digits/testing_set: .*\(2, 5\) for 2 images of 3 classes"):
        predict(_model(5), _set(2))


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no images"):
        predict(_model(), _set(0))
