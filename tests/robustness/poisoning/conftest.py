from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.data import DigitsSource
from dioptra_assets.robustness.image_set import ImageBatch, ImageSet
from dioptra_assets.robustness.poisoning import PoisonedTrainingSet
from dioptra_assets.robustness.training.architectures import build
from dioptra_assets.robustness.training.loop import TrainedModel, TrainingRecipe, train

SOURCE = DigitsSource(image_size=(14, 14))
RECIPE = TrainingRecipe(
    architecture="le_net", epochs=8, batch_size=64, learning_rate=0.002, validation_split=0, early_stopping=None
)


@pytest.fixture(scope="session")
def training_set() -> ImageSet:
    return SOURCE.load("training")


@pytest.fixture(scope="session")
def testing_set() -> ImageSet:
    return SOURCE.load("testing")


@pytest.fixture(scope="session")
def clean_control(training_set: ImageSet) -> TrainedModel:
    """le_net trained on the untouched digits."""
    return train(RECIPE, training_set, seed=0)


@pytest.fixture(scope="session")
def proxy_model() -> Any:
    """le_net as it is before training: its gradients are all that poisons need."""
    keras.utils.set_random_seed(0)
    return build("le_net", SOURCE.image_shape, 10)


def collect(poisoned: PoisonedTrainingSet, like: ImageSet) -> ImageSet:
    """All of a poisoned set in memory."""
    batches: list[ImageBatch] = list(poisoned.batches)
    index = pd.concat([batch.index for batch in batches], ignore_index=True)
    return ImageSet(np.concatenate([batch.images for batch in batches]), index, like.class_names, "poisoned")
