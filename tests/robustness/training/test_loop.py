"""Training does what its recipe says, and the same each time."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.data import DigitsSource
from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.model_files.files import save_model, weights_digest
from dioptra_assets.robustness.training import loop
from dioptra_assets.robustness.training.loop import TrainingRecipe, split_rows, train, training_batches


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return DigitsSource().load("training")


def recipe(**fields: object) -> TrainingRecipe:
    return TrainingRecipe.model_validate({"architecture": "shallow_net", "epochs": 2, "batch_size": 64} | fields)


def test_the_same_recipe_and_seed_give_the_same_bytes_with_dropout_too(digits: ImageSet) -> None:
    small = ImageSet.from_arrays(digits.images(range(200)), digits.labels[:200], digits.class_names)
    le_net = recipe(architecture="le_net", epochs=1)
    first, again, other = (weights_digest(train(le_net, small, seed=seed).model) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "adagrad", "sgd"])
def test_a_training_step_is_traced_once(digits: ImageSet, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small model most of the time goes there."""
    import keras

    traced: list[str] = []
    real = keras.Model.train_step

    def step(model: keras.Model, data: object) -> object:
        traced.append(model.name)
        return real(model, data)

    monkeypatch.setattr(keras.Model, "train_step", step)
    train(recipe(optimizer=optimizer), digits, seed=0)
    assert traced == ["shallow_net"]


def test_training_learns(digits: ImageSet) -> None:
    trained = train(recipe(epochs=25, learning_rate=0.01), digits, seed=0)
    assert trained.history["val_accuracy"].iloc[-1] > 0.93


def test_fractional_epochs_stop_in_the_middle(digits: ImageSet) -> None:
    trained = train(recipe(epochs=1.5), digits, seed=0)
    steps = int(trained.model.optimizer.iterations.numpy())
    per_epoch = -(-trained.training_rows // 64)
    assert steps == per_epoch + round(per_epoch / 2)
    assert trained.history["epoch"].tolist() == [1, 2]


def test_no_epochs_leave_the_weights_of_the_file(digits: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "start.keras"
    start = train(recipe(), digits, seed=0).model
    save_model(start, path)
    trained = train(recipe(epochs=0, weights=str(path), validation_split=0), digits, seed=3)
    assert weights_digest(trained.model) == weights_digest(start)
    assert trained.history.empty


def test_a_weights_file_is_found_by_name_in_the_data_folder(
    digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = train(recipe(), digits, seed=0).model
    save_model(start, tmp_path / "start.keras")
    monkeypatch.setenv("DIOPTRA_ASSETS_DATA", str(tmp_path))
    trained = train(recipe(epochs=0, weights="start.keras", validation_split=0), digits, seed=3)
    assert weights_digest(trained.model) == weights_digest(start)
    with pytest.raises(ValueError, match=r"no such file, looked for other.keras and .*/other.keras"):
        train(recipe(epochs=0, weights="other.keras"), digits, seed=3)


def test_early_stopping_stops(digits: ImageSet) -> None:
    small = ImageSet.from_arrays(digits.images(range(100)), digits.labels[:100], digits.class_names)
    trained = train(recipe(epochs=60, learning_rate=5.0, early_stopping=2), small, seed=0)
    assert len(trained.history) < 60


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "adagrad", "sgd"])
def test_every_optimizer_of_the_recipe_is_used(digits: ImageSet, optimizer: str) -> None:
    trained = train(recipe(epochs=0.2, optimizer=optimizer, learning_rate=0.02), digits, seed=0)
    assert type(trained.model.optimizer).__name__.lower() == optimizer
    assert float(trained.model.optimizer.learning_rate.numpy()) == pytest.approx(0.02)


def test_a_loss_that_is_no_longer_finite_is_an_error(digits: ImageSet, tmp_path: Path) -> None:
    model = train(recipe(epochs=0), digits, seed=0).model
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    save_model(model, tmp_path / "broken.keras")
    with pytest.raises(NonFiniteError, match="non-finite in epoch 1"):
        train(recipe(epochs=1, weights=str(tmp_path / "broken.keras")), digits, seed=0)


def test_progress_names_epoch_loss_and_accuracy(digits: ImageSet) -> None:
    lines: list[str] = []
    train(recipe(epochs=1), digits, seed=0, progress=lines.append)
    assert lines and "epoch 1 of 1" in lines[-1]
    assert "val_accuracy" in lines[-1]


def test_the_validation_split_is_stratified_seeded_and_disjoint(digits: ImageSet) -> None:
    kept, held_out = split_rows(digits, 0.25, seed=5)
    assert sorted([*kept, *held_out]) == list(range(len(digits)))
    shares = np.bincount(digits.labels[held_out]) / np.bincount(digits.labels)
    assert np.all(np.abs(shares - 0.25) < 0.02)
    assert np.array_equal(held_out, split_rows(digits, 0.25, seed=5)[1])
    assert not np.array_equal(held_out, split_rows(digits, 0.25, seed=6)[1])


def test_a_class_too_small_to_be_split_is_an_error_that_says_so() -> None:
    images = ImageSet.from_arrays(np.zeros((5, 2, 2, 1), np.float32), [0, 0, 0, 0, 1], ["a", "b"], name="tiny")
    with pytest.raises(ValueError, match=r"tiny: a validation_split of 0\.4 is not possible"):
        split_rows(images, 0.4, seed=0)


@pytest.mark.parametrize("window", [1 << 30, 20_000])
def test_every_row_comes_once_an_epoch_and_only_the_last_batch_is_smaller(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(loop, "WINDOW_BYTES", window)
    monkeypatch.setattr(loop, "BLOCK_BYTES", 5_000)
    n = 103
    images = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None] / n, (n, 8, 8, 1))
    image_set = ImageSet.from_arrays(images, np.arange(n), [str(i) for i in range(n)])
    rows = np.flatnonzero(np.arange(n) % 7 != 3)
    batches = training_batches(image_set, rows, 16, np.random.default_rng(0))
    per_epoch = -(-len(rows) // 16)
    epochs = [list(itertools.islice(batches, per_epoch)) for _ in range(2)]
    for epoch in epochs:
        assert [len(labels) for _, labels in epoch] == [16] * (per_epoch - 1) + [len(rows) - 16 * (per_epoch - 1)]
        seen = np.concatenate([labels for _, labels in epoch])
        assert sorted(seen) == rows.tolist()
        pixels = np.concatenate([batch for batch, _ in epoch])
        np.testing.assert_allclose(pixels[:, 0, 0, 0] * n, seen, atol=1e-3)
    first, second = (np.concatenate([labels for _, labels in epoch]) for epoch in epochs)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, rows)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "lenet"}, "must be one of shallow_net, le_net, alex_net, resnet50, vgg16"),
        ({"epochs": -1}, "greater than or equal to 0"),
        ({"optimizer": "lion"}, "rmsprop"),
        ({"validation_split": 1.0}, "less than 1"),
        ({"weights": "imagenet"}, "only for resnet50 and vgg16"),
        ({"early_stopping": 2, "validation_split": 0}, "needs a validation_split above 0"),
        ({"momentum": 0.9}, "Extra inputs"),
    ],
)
def test_a_wrong_recipe_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**fields)


def test_imagenet_weights_want_images_of_their_size_and_a_thousand_classes() -> None:
    resnet = TrainingRecipe(architecture="resnet50", weights="imagenet")
    with pytest.raises(ValueError, match="224 x 224 x 3"):
        resnet.check_fits((64, 64, 3), 1000)
    with pytest.raises(ValueError, match="1000 classes, the data have 63"):
        resnet.check_fits((224, 224, 3), 63)


def test_a_weights_file_that_is_not_there_is_named(digits: ImageSet) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.keras"):
        train(recipe(weights="/nowhere.keras"), digits, seed=0)
