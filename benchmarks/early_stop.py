"""PGD-40 on a standard le_net at eps 0.3: with `early_stop`, against all steps."""

from typing import Any

import numpy as np

from benchmarks.measure import Pair, pair
from dioptra_assets.robustness.attacks import parse_attack, perturb_set
from dioptra_assets.robustness.data import MnistSource
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.training.loop import TrainingRecipe, train

PGD_40 = {"method": "pgd", "eps": 0.3, "steps": 40}
FLOOR = 5.0


def rows(quick: bool = False, images: int = 10_000) -> list[Pair]:
    """What was measured."""
    count = 32 if quick else images
    model = trained(2_000 if quick else 20_000)
    testing = few(MnistSource().load("testing"), count)
    answers: dict[bool, np.ndarray] = {}

    def attack(stops: bool, images: ImageSet = testing) -> None:
        config = parse_attack(PGD_40 | {"early_stop": stops})
        batches = perturb_set(config, model, images, seed=0, class_count=10)
        answers[stops] = np.concatenate([batch.images for batch in batches])

    for stops in (False, True):  # compiles
        attack(stops, few(testing, 32))
    measured = pair(
        f"PGD-40 at eps 0.3 with early_stop, {count:,} MNIST images on le_net; peer: all steps",
        lambda: attack(False),
        lambda: attack(True),
        rounds=1 if quick or count > 1_000 else 3,
        floor=None if quick else FLOOR,
        warm=True,
    )
    standing = {
        stops: np.concatenate([_right(model, part, labels) for part, labels in _parts(made, testing.labels)])
        for stops, made in answers.items()
    }
    assert not (standing[True] & ~standing[False]).any(), "an image stands that falls to all steps"
    return [measured]


def trained(count: int) -> Any:
    """le_net after two epochs of some of MNIST."""
    training = few(MnistSource().load("training"), count)
    return train(TrainingRecipe(architecture="le_net", epochs=2), training, seed=0).model


def few(images: ImageSet, count: int) -> ImageSet:
    """The first images of a set."""
    rows = np.arange(count)
    return ImageSet.from_arrays(images.images(rows), images.labels[:count], images.class_names)


def _parts(images: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(images[first : first + 256], labels[first : first + 256]) for first in range(0, len(images), 256)]


def _right(model: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(model(images, training=False)).argmax(axis=1) == labels
