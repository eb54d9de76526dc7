from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from dioptra_assets.robustness.attacks import Attack, perturb_set
from dioptra_assets.robustness.image_set import ImageSet

DIGITS = tuple("0123456789")

Attacked = tuple[np.ndarray, pd.DataFrame]


def attack_all(attack: Attack, model: Any, images: ImageSet, seed: int = 0) -> Attacked:
    """All adversarial images and their index, in one piece."""
    batches = list(perturb_set(attack, model, images, seed=seed, class_count=len(images.class_names)))
    return (
        np.concatenate([batch.images for batch in batches]),
        pd.concat([batch.index for batch in batches], ignore_index=True),
    )


def linear_model(weights: np.ndarray, bias: np.ndarray | None = None) -> Any:
    """A model whose logits are `flattened image @ weights + bias`; weights are [height * width, classes], square."""
    side = round(len(weights) ** 0.5)
    logits = keras.layers.Dense(weights.shape[1], name="logits")
    model = keras.Sequential([keras.Input((side, side, 1)), keras.layers.Flatten(), logits])
    logits.set_weights([np.float32(weights), np.float32(np.zeros(weights.shape[1]) if bias is None else bias)])
    return model


def predict(model: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(model(images, training=False)).argmax(axis=1)


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    """203 handwritten digits of 8x8 that the trained models have not seen."""
    images, labels = _digits()
    return ImageSet.from_arrays(images[-203:], labels[-203:], DIGITS, name="digits/testing_set")


@pytest.fixture(scope="session")
def dense_model() -> Any:
    """A small trained model without convolutions."""
    return _trained(lambda layers: [layers.Flatten(), layers.Dense(32, activation="relu")], epochs=12)


@pytest.fixture(scope="session")
def conv_model() -> Any:
    """le_net in small, trained."""
    return _trained(
        lambda layers: [
            layers.Conv2D(8, 3, activation="relu"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.5),
        ],
        epochs=12,
    )


def _digits() -> tuple[np.ndarray, np.ndarray]:
    data: Any = load_digits()
    return (data.images[..., None] / 16).astype(np.float32), data.target.astype(np.int64)


def _trained(hidden: Callable[[Any], list[Any]], epochs: int) -> Any:
    keras.utils.set_random_seed(1)
    images, labels = _digits()
    model: Any = keras.Sequential(
        [keras.Input((8, 8, 1)), *hidden(keras.layers), keras.layers.Dense(10, name="logits")], name="small"
    )
    model.compile(keras.optimizers.Adam(0.005), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images[:-203], labels[:-203], batch_size=64, epochs=epochs, verbose=0)
    return model
