"""Madry training sees adversarial images alone, and is repeatable, like any training."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from dioptra_assets.robustness.data import DigitsSource
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.model_files.files import load_model, save_model, weights_digest
from dioptra_assets.robustness.training import madry
from dioptra_assets.robustness.training.loop import TrainedModel, TrainingRecipe, train
from dioptra_assets.robustness.training.madry import (
    MadryTraining,
    adversarial_images,
    adversarial_training,
    validation_sample,
)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    images, labels = DigitsSource(image_size=(8, 8)).load("training").to_numpy()
    return ImageSet.from_arrays(images[:600], labels[:600], [str(i) for i in range(10)], name="digits")


def recipe(**fields: object) -> TrainingRecipe:
    settings = {"architecture": "shallow_net", "epochs": 2, "batch_size": 64, "madry": {"eps": 0.2, "steps": 3}}
    return TrainingRecipe.model_validate(settings | fields)


@pytest.fixture(scope="module")
def plain(digits: ImageSet) -> TrainedModel:
    """A model trained on the digits themselves."""
    return train(recipe(madry=None, epochs=15, learning_rate=0.01), digits, seed=0)


def attack(config: MadryTraining, model: Any, images: np.ndarray, labels: np.ndarray, noise: Any = None) -> np.ndarray:
    start = None if noise is None else tf.constant(noise)
    return np.asarray(adversarial_images(config, model, tf.constant(images), tf.constant(labels), start))


def losses(model: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    logits = model(images, training=False)
    return np.asarray(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))


def robust_accuracy(model: Any, images: ImageSet, eps: float) -> float:
    pixels, labels = images.to_numpy()
    attacked = attack(MadryTraining(eps=eps, steps=20), model, pixels, labels)
    return float((np.asarray(model(attacked)).argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("noisy", [False, True])
def test_training_images_stay_in_ball_and_box_and_raise_every_loss(
    digits: ImageSet, plain: TrainedModel, noisy: bool
) -> None:
    model: Any = plain.model
    images, labels = digits.to_numpy()
    noise = np.random.default_rng(0).uniform(-1, 1, images.shape).astype(np.float32) if noisy else None
    attacked = attack(MadryTraining(eps=0.2), model, images, labels, noise)
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert np.abs(attacked - images).max() == pytest.approx(0.2, abs=1e-6)
    assert (losses(model, attacked, labels) > losses(model, images, labels)).all()


def test_on_a_linear_model_it_ends_in_the_corner_of_the_ball() -> None:
    """Where the gradient never changes sign, the worst image of the ball is known."""
    weights = np.array([[1, -1], [-2, 2], [0.5, -0.5], [0, 0]], np.float32)
    layers = [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False, name="logits")]
    model: Any = keras.Sequential(layers)
    model.layers[-1].set_weights([weights])
    images = np.full((1, 2, 2, 1), 0.4, np.float32)
    noise = np.array([[0.9, -0.9], [0.9, 0.5]], np.float32).reshape(1, 2, 2, 1)
    attacked = attack(MadryTraining(eps=0.3, steps=4), model, images, np.array([0]), noise)
    # Class 0 loses where its weight is followed downwards; a pixel without gradient stays where the noise put it.
    np.testing.assert_allclose(attacked.ravel(), [0.1, 0.7, 0.1, 0.55], atol=1e-6)


def test_the_steps_are_those_of_art(digits: ImageSet, plain: TrainedModel) -> None:
    from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2
    from art.estimators.classification import TensorFlowV2Classifier

    model: Any = plain.model
    images, labels = (part[:40] for part in digits.to_numpy())
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    classifier = TensorFlowV2Classifier(
        model=model, nb_classes=10, input_shape=(8, 8, 1), loss_object=loss, clip_values=(0.0, 1.0)
    )
    art = ProjectedGradientDescentTensorFlowV2(classifier, eps=0.2, eps_step=0.05, max_iter=6, verbose=False)
    expected = art.generate(images, np.eye(10, dtype=np.float32)[labels])
    ours = attack(MadryTraining(eps=0.2, eps_step=0.05, steps=6), model, images, labels)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_every_batch_is_replaced_by_images_against_the_weights_of_that_moment(
    digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from inside the step: each batch moves eps away from the pixels, and other weights give other images."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def watched(config: Any, model: Any, images: Any, labels: Any, noise: Any) -> Any:
        attacked = adversarial_images(config, model, images, labels, noise)
        tf.py_function(lambda a, b: seen.append((a.numpy(), b.numpy())), [images, attacked], [])
        return attacked

    monkeypatch.setattr(madry, "adversarial_images", watched)
    small = ImageSet.from_arrays(digits.images(range(100)), digits.labels[:100], digits.class_names)
    settings = {"eps": 0.2, "steps": 3, "random_start": False}
    train(recipe(validation_split=0, batch_size=40, epochs=2, learning_rate=0.1, madry=settings), small, seed=0)
    assert [len(images) for images, _ in seen] == [40, 40, 20] * 2
    assert all(np.abs(attacked - images).max() == pytest.approx(0.2, abs=1e-6) for images, attacked in seen)
    pictures = [{image.tobytes(): attacked[i] for i, image in enumerate(images)} for images, attacked in seen]
    first, second = ({k: v for batch in epoch for k, v in batch.items()} for epoch in (pictures[:3], pictures[3:]))
    assert first.keys() == second.keys()
    assert any(not np.array_equal(first[key], second[key]) for key in first)


def test_the_same_seed_gives_the_same_bytes_and_the_random_start_has_its_own_numbers(digits: ImageSet) -> None:
    small = ImageSet.from_arrays(digits.images(range(150)), digits.labels[:150], digits.class_names)
    noisy = recipe(architecture="le_net", epochs=0.5, validation_split=0)
    still = noisy.model_copy(update={"madry": MadryTraining(eps=0.2, steps=3, random_start=False)})
    one, again, without = (train(r, small, seed=1) for r in (noisy, noisy, still))
    assert weights_digest(one.model) == weights_digest(again.model) != weights_digest(without.model)
    assert one.history.equals(again.history)


def test_training_makes_the_model_robust_and_history_and_progress_say_so(digits: ImageSet, plain: TrainedModel) -> None:
    lines: list[str] = []
    hardened = train(recipe(epochs=15, learning_rate=0.02), digits, seed=0, progress=lines.append)
    assert "val_robust_accuracy" in lines[-1]
    assert robust_accuracy(hardened.model, digits, 0.2) > robust_accuracy(plain.model, digits, 0.2) + 0.2
    history = hardened.history
    assert {"val_robust_loss", "val_robust_accuracy"} <= set(history) and "val_robust_loss" not in plain.history
    assert (history["val_robust_accuracy"] <= history["val_accuracy"]).all()
    assert history["val_robust_accuracy"].iloc[-1] > history["val_robust_accuracy"].iloc[0] + 0.1


def test_early_stopping_goes_by_the_attacked_validation_images(digits: ImageSet) -> None:
    trained = train(recipe(epochs=20, learning_rate=0.1, early_stopping=1), digits, seed=0)
    losses = trained.history["val_robust_loss"].to_numpy()
    best = int(losses.argmin())
    assert len(losses) in {best + 2, 20}
    assert losses[best] < trained.history["val_robust_loss"].iloc[0]


def test_moving_statistics_are_those_of_one_training_step_and_the_model_is_keras_own_again(
    digits: ImageSet, tmp_path: Any
) -> None:
    """The attack's forward passes leave batch normalisation alone."""
    images, labels = (part[:32] for part in digits.to_numpy())
    keras.utils.set_random_seed(0)
    norm = keras.layers.BatchNormalization(momentum=0.5)
    layers = [keras.Input((8, 8, 1)), norm, keras.layers.Flatten(), keras.layers.Dense(10, name="logits")]
    model: Any = keras.Sequential(layers)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    attacked = attack(MadryTraining(eps=0.2, random_start=False), model, images, labels)
    with adversarial_training(MadryTraining(eps=0.2, random_start=False), model, 0):
        model.fit(images, labels, batch_size=32, epochs=1, verbose=0)
    np.testing.assert_allclose(np.asarray(norm.moving_mean), [0.5 * attacked.mean()], rtol=1e-4)
    assert "train_step" not in vars(model)
    save_model(model, tmp_path / "model.keras")
    assert weights_digest(load_model(tmp_path / "model.keras")) == weights_digest(model)


def test_a_bounded_and_even_part_of_the_validation_rows_is_attacked() -> None:
    rows = np.arange(0, 30_000, 3)
    sample = validation_sample(rows, (28, 28, 1))
    assert len(sample) == len(set(sample)) == 1000
    assert sample[0] == rows[0] and sample[-1] == rows[-1]
    assert np.diff(sample).max() <= 33
    assert validation_sample(rows[:7], (28, 28, 1)).tolist() == rows[:7].tolist()
    assert len(validation_sample(rows, (224, 224, 3))) * 224 * 224 * 3 * 4 <= 128 << 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"madry\.eps\n.*Field required"),
        ({"eps": 0}, r"madry\.eps\n.*greater than 0"),
        ({"eps": 8}, r"madry\.eps\n.*less than or equal to 1"),
        ({"eps": 0.3, "steps": 0}, r"madry\.steps\n.*greater than or equal to 1"),
        ({"eps": 0.3, "steps": 7, "eps_step": 0.01}, r"7 steps of eps_step 0.01 reach 0.07, less than eps 0.3"),
        ({"eps": 0.3, "ratio": 0.5}, r"madry\.ratio\n.*Extra inputs"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(madry=fields)


def test_an_eps_step_that_just_reaches_eps_is_taken() -> None:
    assert MadryTraining(eps=0.3, steps=3, eps_step=0.1).step_size == 0.1
    assert MadryTraining(eps=0.3, steps=10).step_size == pytest.approx(0.075)
