"""Model inversion follows the paper, and its scores are the ones they say they are."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.inversion import miface
from dioptra_assets.robustness.inversion.miface import (
    INVERTED_COLUMNS,
    ModelInversion,
    TrainingFacts,
    _compiled_miface,
    invert,
    parse_inversion,
)
from dioptra_assets.robustness.inversion.scores import inversion_table, structural_similarity, training_means
from tests.robustness.attacks.conftest import DIGITS, conv_model, dense_model, digits, linear_model

__all__ = ["conv_model", "dense_model", "digits"]  # fixtures


def inverted(
    model: Any, config: ModelInversion | None = None, seed: int = 0, training_mean: Any = None, **rest: Any
) -> ImageSet:
    known = TrainingFacts(model.input_shape[1:], DIGITS[: model.output_shape[-1]], training_mean)
    return invert(config or ModelInversion(), model, known, seed=seed, **rest)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def class_confidence(model: Any, images: ImageSet) -> np.ndarray:
    pixels, labels = images.to_numpy()
    return softmax(np.asarray(model(pixels, training=False), np.float64))[np.arange(len(labels)), labels]


@pytest.mark.parametrize("start", ["noise", "grey"])
@pytest.mark.parametrize("which", ["dense_model", "conv_model"])
def test_every_class_is_inverted_with_confidence(which: str, start: Any, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    images = inverted(model, ModelInversion(start=start))
    pixels, labels = images.to_numpy()
    assert labels.tolist() == list(range(10))
    assert pixels.min() >= 0 and pixels.max() <= 1 and pixels.dtype == np.float32
    np.testing.assert_allclose(images.index["confidence"], class_confidence(model, images), atol=1e-5)
    assert (images.index["confidence"] >= 0.9).all()
    assert list(images.index) == ["image_id", "label", *INVERTED_COLUMNS]
    assert not images.index["zero_gradient"].any()


def test_one_step_goes_the_way_of_arts_gradient_divided_by_the_confidence(conv_model: Any) -> None:
    from art.attacks.inference.model_inversion import MIFace
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model=keras.Sequential([conv_model, keras.layers.Softmax()]),
        nb_classes=10,
        input_shape=(8, 8, 1),
        loss_object=keras.losses.CategoricalCrossentropy(),
        clip_values=(0.0, 1.0),
    )
    grey, rate = np.full((10, 8, 8, 1), 0.5, np.float32), 0.01
    art = MIFace(classifier, max_iter=1, learning_rate=rate, batch_size=10, verbose=False)
    theirs = art.infer(grey, np.arange(10)) - 0.5
    ours = inverted(conv_model, ModelInversion(max_iter=1, learning_rate=rate, start="grey", threshold=0.9999))
    step = np.asarray(ours.pixels[slice(0, 10)]) - 0.5
    confidence = softmax(np.asarray(conv_model(grey), np.float64)).diagonal()
    moved = step.any(axis=(1, 2, 3))
    assert moved.sum() >= 8  # a class whose confidence the step did not raise keeps the start as its best candidate
    np.testing.assert_allclose((step * confidence[:, None, None, None])[moved], theirs[moved], atol=2e-7)


def test_descent_stops_at_the_first_candidate_that_reaches_the_threshold() -> None:
    # Two classes, one pixel of weight: the log odds of class 1 rise from 0, the derivative is 2 (1 - confidence).
    weights = np.array([[-1, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    model = linear_model(weights, np.array([0.5, -0.5], np.float32))
    config = ModelInversion(start="grey", learning_rate=0.1, threshold=0.6, classes=(1,))
    row = inverted(model, config).index.iloc[0]
    pixel, steps = 0.5, 0
    while (confidence := 1 / (1 + np.exp(1 - 2 * pixel))) < 0.6:
        pixel, steps = pixel + 0.1 * 2 * (1 - confidence), steps + 1
    assert (row["iterations"], row["stop_reason"]) == (steps, "threshold")
    assert row["confidence"] == pytest.approx(confidence, abs=1e-5)


def test_descent_stops_when_nothing_has_improved_for_the_window_and_not_before() -> None:
    # The best pixel is white after some steps; from then on every candidate is the same.
    weights = np.array([[-1, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    model = linear_model(weights)
    steps = {}
    for window in (1, 7):
        config = ModelInversion(start="grey", learning_rate=0.4, window_length=window, classes=(1,))
        row = inverted(model, config).index.iloc[0]
        assert row["stop_reason"] == "window"
        assert row["confidence"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-5)
        steps[window] = row["iterations"]
    assert steps[7] == steps[1] + 6


def test_max_iter_bounds_the_steps_and_the_best_candidate_is_returned(dense_model: Any) -> None:
    short = ModelInversion(max_iter=5, threshold=0.9999, learning_rate=0.01)
    images = inverted(dense_model, short)
    assert set(images.index["stop_reason"]) == {"max_iter"} and set(images.index["iterations"]) == {5}
    # Steps far too long jump about: the best of many is at least as good as the best of a few.
    wild = [
        inverted(dense_model, ModelInversion(max_iter=steps, threshold=0.9999, learning_rate=30.0, window_length=1000))
        for steps in (3, 6, 12, 24)
    ]
    confidences = np.stack([images.index["confidence"] for images in wild])
    assert (np.diff(confidences, axis=0) >= 0).all()
    np.testing.assert_allclose(confidences[-1], class_confidence(dense_model, wild[-1]), atol=1e-5)


def test_a_model_that_is_sure_of_another_class_is_still_inverted(dense_model: Any) -> None:
    """There the confidence is below what float32 can tell from zero in 1 - confidence, and so is its gradient."""
    sure: Any = keras.models.clone_model(dense_model)
    sure.set_weights(dense_model.get_weights())
    kernel, bias = sure.layers[-1].get_weights()
    sure.layers[-1].set_weights([kernel, bias + np.array([60.0] + [0.0] * 9, np.float32)])
    images = inverted(sure, ModelInversion(classes=tuple(range(1, 10)), learning_rate=0.5, max_iter=500))
    assert not images.index["zero_gradient"].any()
    start = np.stack([np.random.default_rng([0, label]).random((8, 8, 1), np.float32) for label in range(1, 10)])
    before = softmax(np.asarray(sure(start), np.float64))[np.arange(9), np.arange(1, 10)]
    assert before.max() < 1e-9
    assert (images.index["confidence"].to_numpy() > 1e3 * before).all()


def test_a_model_without_gradient_is_reported_and_its_image_stays_the_start() -> None:
    images = inverted(linear_model(np.zeros((4, 3))), ModelInversion(start="grey", window_length=5))
    assert images.index["zero_gradient"].all() and set(images.index["stop_reason"]) == {"window"}
    assert (images.to_numpy()[0] == 0.5).all()


def test_the_same_seed_gives_the_same_bytes_and_each_class_its_own_noise(dense_model: Any) -> None:
    one, again, other = (inverted(dense_model, seed=seed).to_numpy()[0] for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    named = inverted(dense_model, ModelInversion(seed=2), seed=1).to_numpy()[0]
    assert np.array_equal(named, other)
    few = inverted(dense_model, ModelInversion(classes=(7, 2), batch_size=1), seed=1)
    assert few.labels.tolist() == [7, 2] and few.index["image_id"].tolist() == ["000007", "000002"]
    np.testing.assert_allclose(few.to_numpy()[0], one[[7, 2]], atol=1e-4)


def test_the_descent_can_start_from_the_mean_of_the_training_set(dense_model: Any, digits: ImageSet) -> None:
    mean, _ = training_means(digits)
    far = ModelInversion(start="mean", max_iter=1, learning_rate=1e-6)
    np.testing.assert_allclose(inverted(dense_model, far, training_mean=mean).to_numpy()[0][3], mean, atol=1e-4)
    with pytest.raises(ValueError, match=r"start is mean: .*\(8, 8, 1\), but none was given"):
        inverted(dense_model, far)
    with pytest.raises(ValueError, match=r"one of shape \(4, 4, 1\) was given"):
        inverted(dense_model, far, training_mean=mean[:4, :4])


def test_configs_of_a_sweep_compile_once(dense_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inverted(dense_model, ModelInversion(max_iter=3))
    compiles: list[Any] = []
    monkeypatch.setattr(miface, "_compiled_miface", lambda *of: compiles.append(of) or _compiled_miface(*of))
    inverted(dense_model, ModelInversion(max_iter=4, window_length=2, threshold=0.5, learning_rate=1.0, start="grey"))
    assert not compiles


def test_progress_counts_classes(dense_model: Any) -> None:
    seen: list[tuple[int, int]] = []
    inverted(dense_model, ModelInversion(max_iter=1, batch_size=4), progress=lambda done, n: seen.append((done, n)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_a_model_that_gives_nan_is_an_error_that_names_the_class() -> None:
    weights = np.zeros((4, 3))
    weights[0, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"non-finite logits or gradient of the model while inverting: 0, 1, 2"):
        inverted(linear_model(weights))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_iter": 0}, r"max_iter\n.*greater than or equal to 1"),
        ({"window_length": 0}, r"window_length\n.*greater than or equal to 1"),
        ({"threshold": 1.0}, r"threshold\n.*less than 1"),
        ({"learning_rate": 0}, r"learning_rate\n.*greater than 0"),
        ({"start": "zero"}, r"start\n.*'noise', 'mean' or 'grey'"),
        ({"classes": [1, 1]}, r"classes is \[1, 1\]: it must name at least one class, from 0 up and each once"),
        ({"classes": []}, r"classes is \[\]"),
        ({"iterations": 3}, r"iterations\n.*Extra inputs"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_inversion({"method": "miface", **fields})


def test_unknown_methods_classes_and_models_are_refused(dense_model: Any) -> None:
    with pytest.raises(ValueError, match="method is 'mi': allowed are miface"):
        parse_inversion({"method": "mi"})
    with pytest.raises(ValueError, match="classes holds 10, but there are 10 classes: allowed are 0 to 9"):
        inverted(dense_model, parse_inversion({"method": "miface", "classes": 10}))
    probabilities: Any = keras.Sequential([keras.Input((8, 8, 1)), dense_model, keras.layers.Softmax()])
    with pytest.raises(ValueError, match="ends in softmax"):
        inverted(probabilities)


def test_defaults_are_those_of_art() -> None:
    import inspect

    from art.attacks.inference.model_inversion import MIFace

    defaults = inspect.signature(MIFace.__init__).parameters
    for name in ("max_iter", "window_length", "threshold", "learning_rate"):
        assert getattr(ModelInversion(), name) == defaults[name].default


def test_means_are_those_of_numpy_and_missing_for_a_class_without_images(digits: ImageSet) -> None:
    images, labels = digits.to_numpy()
    few = ImageSet.from_arrays(images[labels != 4], labels[labels != 4], DIGITS)
    mean, by_class = training_means(few)
    np.testing.assert_allclose(mean, images[labels != 4].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(by_class[3], images[labels == 3].mean(axis=0), atol=1e-6)
    assert np.isnan(by_class[4]).all() and np.isfinite(np.delete(by_class, 4, axis=0)).all()


def test_the_table_scores_what_can_be_checked_by_hand(dense_model: Any, conv_model: Any, digits: ImageSet) -> None:
    _, means = training_means(digits)
    images = inverted(dense_model, ModelInversion(max_iter=50))
    table = inversion_table(images, means, dense_model, {"conv": conv_model})
    pixels, labels = images.to_numpy()
    distances = np.sqrt(((pixels[:, None] - means[None].astype(np.float64)) ** 2).sum(axis=(2, 3, 4)))
    np.testing.assert_allclose(table["l2_to_class_mean"], distances.diagonal(), rtol=1e-6)
    assert table["nearest_class_mean"].tolist() == distances.argmin(axis=1).tolist()
    np.testing.assert_allclose(table["confidence"], class_confidence(dense_model, images), atol=1e-6)
    assert table["prediction_conv"].tolist() == np.asarray(conv_model(pixels)).argmax(axis=1).tolist()
    assert table["prediction"].tolist() == np.asarray(dense_model(pixels)).argmax(axis=1).tolist()
    assert table["label"].tolist() == labels.tolist() and table["class_name"].tolist() == list(DIGITS)
    assert (table["ssim_to_class_mean"] < 1).all()


def test_the_means_themselves_score_best_and_a_class_without_mean_scores_nan(
    dense_model: Any, digits: ImageSet
) -> None:
    _, means = training_means(digits)
    index = inverted(dense_model, ModelInversion(max_iter=1)).index
    perfect = ImageSet(means, index, DIGITS)
    table = inversion_table(perfect, means, dense_model, {})
    assert (table["l2_to_class_mean"] == 0).all() and table["ssim_to_class_mean"].tolist() == pytest.approx([1] * 10)
    assert table["nearest_class_mean"].tolist() == list(range(10))
    gap = means.copy()
    gap[4] = np.nan
    table = inversion_table(perfect, gap, dense_model, {})
    assert np.flatnonzero(table["l2_to_class_mean"].isna()).tolist() == [4]
    assert np.flatnonzero(table["ssim_to_class_mean"].isna()).tolist() == [4]
    assert 4 not in table["nearest_class_mean"].tolist()
    with pytest.raises(ValueError, match=r"class means of shape \(9, 8, 8, 1\), expected \(10, 8, 8, 1\)"):
        inversion_table(perfect, means[:9], dense_model, {})


def test_ssim_is_the_formula_of_the_paper_window_by_window() -> None:
    random = np.random.default_rng(0)
    x, y = random.random((2, 2, 16, 14, 3))
    place = np.arange(-5, 6)
    window = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def one(a: np.ndarray, b: np.ndarray) -> float:
        mu_a, mu_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mu_a) ** 2).sum(), (window * (b - mu_b) ** 2).sum()
        cov = (window * (a - mu_a) * (b - mu_b)).sum()
        luminance = (2 * mu_a * mu_b + 1e-4) / (mu_a**2 + mu_b**2 + 1e-4)
        return luminance * (2 * cov + 9e-4) / (var_a + var_b + 9e-4)

    expected = [
        np.mean(
            [
                one(x[n, r : r + 11, c : c + 11, channel], y[n, r : r + 11, c : c + 11, channel])
                for r in range(6)
                for c in range(4)
                for channel in range(3)
            ]
        )
        for n in range(2)
    ]
    np.testing.assert_allclose(structural_similarity(x, y), expected, atol=1e-10)


def test_ssim_of_flat_images_is_their_luminance_term_also_where_the_window_does_not_fit() -> None:
    for size in (8, 20):
        dark, light = (np.full((1, size, size, 1), value) for value in (0.2, 0.7))
        expected = (2 * 0.2 * 0.7 + 1e-4) / (0.2**2 + 0.7**2 + 1e-4)
        assert structural_similarity(dark, light)[0] == pytest.approx(expected)
        assert structural_similarity(dark, dark)[0] == pytest.approx(1)


JAX = """
import sys, numpy as np
from tests.robustness.attacks.conftest import linear_model
from dioptra_assets.robustness.inversion.miface import ModelInversion, TrainingFacts, invert
model = linear_model(np.random.default_rng(0).normal(size=(16, 3)))
images = invert(ModelInversion(max_iter=30, threshold=0.9), model, TrainingFacts((4, 4, 1), "abc"), seed=0)
np.savez(sys.argv[1], pixels=images.pixels, **images.index[["confidence", "iterations"]])
"""


@pytest.mark.slow
def test_jax_gives_what_tensorflow_gives(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    for backend in ("tensorflow", "jax"):
        environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", JAX, str(tmp_path / f"{backend}.npz")], env=environment, check=True)
    ours, theirs = (np.load(tmp_path / f"{backend}.npz") for backend in ("jax", "tensorflow"))
    assert ours["iterations"].tolist() == theirs["iterations"].tolist()
    np.testing.assert_allclose(ours["pixels"], theirs["pixels"], atol=1e-5)
