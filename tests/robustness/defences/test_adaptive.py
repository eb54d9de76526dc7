"""Model and defence attacked together."""

from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

from dioptra_assets.robustness import model_cache
from dioptra_assets.robustness.attacks import FastGradientMethod, compiled, perturb_set
from dioptra_assets.robustness.data.digits import DigitsSource
from dioptra_assets.robustness.defences import (
    Defence,
    GaussianAugmentation,
    JpegCompression,
    SpatialSmoothing,
    defended_model,
)
from dioptra_assets.robustness.defences.adaptive import _draw
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.image_set import ImageSet

DEFENCES = [SpatialSmoothing(), JpegCompression(quality=30), GaussianAugmentation(sigma=0.2)]
EPS = 0.1


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    """120 digits of 20x20 that the model has not seen."""
    testing = DigitsSource(image_size=(20, 20)).load("testing")
    images, labels = testing.to_numpy()
    return ImageSet.from_arrays(images[:120], labels[:120], testing.class_names, name="digits/testing_set")


@pytest.fixture(scope="module")
def model() -> Any:
    """A small trained network with convolutions."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model: Any = keras.Sequential(
        [
            keras.Input((20, 20, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ],
        name="small",
    )
    model.compile(keras.optimizers.Adam(0.005), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = DigitsSource(image_size=(20, 20)).load("training").to_numpy()
    model.fit(images, labels, batch_size=64, epochs=5, verbose=0)
    return model


def fgm(model: Any, digits: ImageSet, images: np.ndarray, eps: float, **fields: Any) -> np.ndarray:
    attack = FastGradientMethod(eps=eps, **fields)
    image_set = ImageSet.from_arrays(images, digits.labels, digits.class_names)
    return np.concatenate([batch.images for batch in perturb_set(attack, model, image_set, seed=0, class_count=10)])


def pgd(model: Any, digits: ImageSet) -> np.ndarray:
    clean = digits.to_numpy()[0]
    images = clean
    for _ in range(10):
        images = np.clip(fgm(model, digits, images, EPS / 4), clean - EPS, clean + EPS)
    return images.astype(np.float32)


def accuracy(model: Any, defence: Defence, digits: ImageSet, images: np.ndarray) -> float:
    """Of the defended model, with noise over several draws."""
    draws = range(5 if isinstance(defence, GaussianAugmentation) else 1)
    defended = [defence.on_prediction(images, rows=np.arange(len(images)), seed=seed) for seed in draws]
    return float(np.mean([(np.asarray(model(x)).argmax(axis=1) == digits.labels).mean() for x in defended]))


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.method)
def test_an_adaptive_attack_is_at_least_as_strong_as_an_oblivious_one(
    defence: Defence, model: Any, digits: ImageSet
) -> None:
    adaptive = defended_model(model, defence, 0)
    clean = digits.to_numpy()[0]
    noise = np.random.default_rng(0).choice([-EPS, EPS], clean.shape)
    random = np.clip(clean + noise, 0, 1).astype(np.float32)
    found = {
        "random": accuracy(model, defence, digits, random),
        "fgm, oblivious": accuracy(model, defence, digits, fgm(model, digits, clean, EPS)),
        "fgm, adaptive": accuracy(model, defence, digits, fgm(adaptive, digits, clean, EPS)),
        "pgd, oblivious": accuracy(model, defence, digits, pgd(model, digits)),
        "pgd, adaptive": accuracy(model, defence, digits, pgd(adaptive, digits)),
    }
    image = 1 / len(digits)  # one image may fall either way
    assert found["fgm, adaptive"] <= found["fgm, oblivious"] + image, found
    assert found["pgd, adaptive"] <= found["pgd, oblivious"] + image, found
    assert found["pgd, adaptive"] <= found["fgm, adaptive"] + image, found
    assert found["fgm, adaptive"] < found["random"] - 0.2, found


@pytest.mark.parametrize("defence", DEFENCES[:2], ids=lambda defence: defence.method)
def test_forwards_it_is_the_defended_model(defence: Defence, model: Any, digits: ImageSet) -> None:
    images = digits.to_numpy()[0]
    expected = model(defence.on_prediction(images, rows=np.arange(120), seed=0))
    np.testing.assert_allclose(defended_model(model, defence, 0)(images), expected, atol=1e-5)
    table = predict(defended_model(model, defence, 0), digits, batch_size=50)
    assert table["prediction"].tolist() == np.asarray(expected).argmax(axis=1).tolist()


def test_the_gradient_passes_through_jpeg_as_through_the_identity(model: Any, digits: ImageSet) -> None:
    defence = JpegCompression(quality=30)
    images, labels = digits.to_numpy()
    behind, _ = compiled.loss_gradient(defended_model(model, defence, 0), tf.constant(images), labels, 10)
    compressed = defence.transform(images, rows=np.arange(120), seed=0)
    expected, _ = compiled.loss_gradient(model, tf.constant(compressed), labels, 10)
    np.testing.assert_allclose(behind, expected, atol=1e-5)
    assert np.abs(behind).max() > 0.1


def sampled_gradients(
    model: Any, images: np.ndarray, noise: np.ndarray, direction: np.ndarray, *, clipped: bool = True
) -> np.ndarray:
    """Gradient of the logits along `direction`, one draw of the noise after the other."""
    gradients = []
    for draw in noise:
        with tf.GradientTape() as tape:
            x = tf.constant(images)
            tape.watch(x)
            drawn = tf.clip_by_value(x + draw, 0.0, 1.0) if clipped else x + draw
            value = tf.reduce_sum(model(drawn) * direction)
        gradients.append(np.asarray(tape.gradient(value, x)))
    return np.stack(gradients)


def test_behind_noise_the_gradient_is_the_mean_over_the_draws(model: Any, digits: ImageSet) -> None:
    images = digits.to_numpy()[0][:20]
    adaptive = defended_model(model, GaussianAugmentation(sigma=0.2), 0, 6)
    direction = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    with tf.GradientTape() as tape:
        x = tf.constant(images)
        tape.watch(x)
        value = tf.reduce_sum(adaptive(x) * direction)
    gradient = np.asarray(tape.gradient(value, x))
    each = sampled_gradients(model, images, adaptive._noise(images), direction)
    np.testing.assert_allclose(gradient, each.mean(axis=0), atol=1e-4)
    assert np.abs(each[0] - gradient).max() > 0.05, "one draw alone would have done"


def test_the_loss_rises_along_the_mean_of_sampled_loss_gradients(model: Any, digits: ImageSet) -> None:
    images, labels = digits.to_numpy()
    defence = GaussianAugmentation(sigma=0.1)
    gradient, _ = compiled.loss_gradient(defended_model(model, defence, 0, 20), tf.constant(images), labels, 10)
    sampled = [
        np.asarray(compiled.loss_gradient(model, tf.constant(noisy), labels, 10)[0]) * ((noisy > 0) & (noisy < 1))
        for noisy in (defence.transform(images, rows=np.arange(120), seed=seed) for seed in range(20))
    ]
    mean, ours = np.mean(sampled, axis=0).reshape(120, -1), np.asarray(gradient).reshape(120, -1)
    cosine = (mean * ours).sum(axis=1) / np.linalg.norm(mean, axis=1) / np.linalg.norm(ours, axis=1)
    assert np.median(cosine) > 0.8


class RandomShift(Defence, frozen=True, extra="forbid"):
    """A made-up defence that draws: every image is moved sideways by up to two pixels."""

    draws: ClassVar[bool] = True

    method: str = "random_shift"

    def describe(self) -> str:
        """See the base class."""
        return "moved sideways"

    def transform(self, images: np.ndarray, *, rows: np.ndarray, seed: int) -> np.ndarray:
        """See the base class."""
        moves = [int(np.random.default_rng([seed, row]).integers(-2, 3)) for row in rows.tolist()]
        return np.stack([np.roll(image, move, axis=1) for image, move in zip(images, moves, strict=True)])


def test_any_defence_that_draws_is_faced_as_the_mean_over_its_draws(model: Any, digits: ImageSet) -> None:
    images = digits.to_numpy()[0][:20]
    adaptive = defended_model(model, RandomShift(), 0, 8)
    drawn = _draw(adaptive.defence, adaptive._seeds, np.tile(images, (8, 1, 1, 1))).reshape(8, *images.shape)
    assert len({draw.tobytes() for draw in drawn}) == 8, "every draw is another"
    logits = np.stack([np.asarray(model(draw)) for draw in drawn])
    np.testing.assert_allclose(np.asarray(adaptive(images)), logits.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(np.asarray(adaptive(images[5:])), np.asarray(adaptive(images))[5:], atol=1e-4)
    assert not np.allclose(np.asarray(adaptive(images + np.float32(0.01))), np.asarray(adaptive(images)), atol=1e-3)
    direction = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    with tf.GradientTape() as tape:
        x = tf.constant(images)
        tape.watch(x)
        value = tf.reduce_sum(adaptive(x) * direction)
    each = sampled_gradients(model, images, drawn - images, direction, clipped=False)
    np.testing.assert_allclose(np.asarray(tape.gradient(value, x)), each.mean(axis=0), atol=1e-4)


def test_the_draws_are_new_for_new_pixels_the_same_in_any_batch_and_not_those_of_the_defended_set() -> None:
    defence = GaussianAugmentation(sigma=0.2)
    small = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    adaptive = defended_model(small, defence, 7, 3)
    images = np.random.default_rng(0).random((5, 4, 4, 1), np.float32)
    noise = adaptive._noise(images)
    assert noise.shape == (3, 5, 4, 4, 1)
    assert len({draw.tobytes() for draw in noise.reshape(15, -1)}) == 15
    assert np.array_equal(adaptive._noise(images[3:]), noise[:, 3:])
    assert np.array_equal(adaptive._noise(np.nextafter(images, 1)), noise), "a rounding must not change the draws"
    assert not (adaptive._noise(images + np.float32(0.01)) == noise).any()
    of_set = defence.noise(images.shape, keys=np.arange(5, dtype=np.uint64), seed=7)
    assert not (noise == of_set).any()


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.method)
def test_adaptive_attacks_repeat_to_the_byte_in_any_batch(defence: Defence, model: Any, digits: ImageSet) -> None:
    images = digits.to_numpy()[0]
    first = fgm(defended_model(model, defence, 3), digits, images, EPS)
    # A model equal in all but name is compiled anew.
    model_cache._models.forget()
    assert fgm(defended_model(model, defence, 3), digits, images, EPS).tobytes() == first.tobytes()
    np.testing.assert_allclose(
        fgm(defended_model(model, defence, 3), digits, images, EPS, batch_size=50), first, rtol=0, atol=1e-6
    )


def test_the_engine_art_attacks_the_same_stand_in(model: Any, digits: ImageSet) -> None:
    adaptive = defended_model(model, SpatialSmoothing(), 0)
    images = digits.to_numpy()[0]
    assert np.array_equal(fgm(adaptive, digits, images, EPS, engine="art"), fgm(adaptive, digits, images, EPS))


def test_attacks_of_a_sweep_share_what_is_compiled(model: Any) -> None:
    first = defended_model(model, SpatialSmoothing(), 0)
    assert defended_model(model, SpatialSmoothing(window_size=3), 0) is first
    assert defended_model(model, SpatialSmoothing(window_size=5), 0) is not first


def test_a_defence_that_is_not_applied_to_predictions_does_not_stand_before_the_model(model: Any) -> None:
    assert defended_model(model, SpatialSmoothing(apply_fit=True, apply_predict=False), 0) is model


def test_a_model_that_ends_in_softmax_is_refused_behind_a_defence_too(digits: ImageSet) -> None:
    model = keras.Sequential([keras.Input((20, 20, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
    model.name = "probabilities"
    with pytest.raises(ValueError, match="'probabilities behind jpeg_compression' ends in softmax"):
        fgm(defended_model(model, JpegCompression(), 0), digits, digits.to_numpy()[0], EPS)


def test_no_sample_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="eot_samples is 0, it must be at least 1"):
        defended_model(model, GaussianAugmentation(sigma=0.1), 0, 0)
