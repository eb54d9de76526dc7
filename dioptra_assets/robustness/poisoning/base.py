"""What every backdoor attack has: a typed config, a threat model, and the way it poisons a training set.

Every training row keeps its place: a poisoned set has as many rows as the clean one, in the same order.

Why: docs/decisions/0013-validation-rows-before-poisoning.md
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from dioptra_assets.robustness.attacks.base import ThreatModel
from dioptra_assets.robustness.image_set import DEFAULT_BATCH_SIZE, ImageBatch, ImageSet, Pixels
from dioptra_assets.robustness.poisoning.trigger import Trigger
from dioptra_assets.robustness.seeds import derive_seed

# Images waiting in memory for enough poisons to fill a batch of the attack.
WINDOW_BYTES = 256 << 20

# From images [n, height, width, channels] of rows to be poisoned, and their ids, to the poisoned images and the size
# float32 [n] of what was done to each before the trigger.
PoisonImages = Callable[[np.ndarray, list[str]], tuple[np.ndarray, np.ndarray]]


class Poisoning(BaseModel, ABC, frozen=True, extra="forbid"):
    """Config of a backdoor attack. Closed: an unknown field is an error, and so is a value out of bounds.

    A subclass sets `method` to its own name and says which rows may be poisoned, with which label and how.
    """

    method: str
    target_class: int = Field(ge=0, strict=True, description="The class that the trigger is to lead to, 0-based.")
    poison_fraction: float = Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the eligible training rows that are poisoned, 0 (none) to 1 (all): "
        "round(poison_fraction * eligible) rows, halves to even, drawn without replacement.",
    )
    trigger: Trigger = Field(default=Trigger(), description="What is stamped on poisoned and on triggered images.")
    validation_split: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of the training set held out for validation before any row is poisoned, stratified by class."
        " Takes the place of that of the training recipe.",
    )
    seed: int | None = Field(
        default=None, ge=0, strict=True, description="Left out: derived from the experiment's seed and the cell."
    )

    @property
    def needs_proxy_model(self) -> bool:
        """Whether poisons are made with the help of a trained model, other than the one that will be poisoned."""
        return False

    @abstractmethod
    def threat_model(self) -> ThreatModel:
        """The assumptions about the attacker under which this attack's numbers hold."""

    @abstractmethod
    def eligible(self, labels: np.ndarray) -> np.ndarray:
        """Which training rows may be poisoned, bool [n], from their labels int64 [n]."""

    @abstractmethod
    def poisoned_labels(self, labels: np.ndarray) -> np.ndarray:
        """The labels int64 [n] that poisoned rows of the labels `labels` are given."""

    def prepare(self, proxy_model: Any, class_count: int) -> PoisonImages:
        """Set the attack up once; the function returned then poisons up to `poison_batch_size` images at a time.

        Args:
            proxy_model: a Keras model that gives logits, where the attack needs one, else None.
            class_count: number of classes.
        """
        return lambda images, image_ids: (self.trigger.stamp(images), np.zeros(len(images), np.float32))

    @property
    def poison_batch_size(self) -> int:
        """How many images :meth:`prepare`'s function takes at a time."""
        return DEFAULT_BATCH_SIZE

    def check_fits(self, image_shape: tuple[int, int, int], class_count: int | None) -> None:
        """Refuse images (height, width, channels) or a number of classes that the attack cannot be used on.

        Raises:
            ValueError: naming the field, the value and what is allowed.
        """
        self.trigger.check_fits(image_shape)
        if class_count is not None and self.target_class >= class_count:
            raise ValueError(
                f"target_class is {self.target_class}, but there are {class_count} classes: allowed are 0 to "
                f"{class_count - 1}"
            )


class PoisonedTrainingSet(NamedTuple):
    """A training set with poisons in it.

    Attributes:
        batches: every row of the training set in its order, a batch at a time, made as they are asked for and once
            only. The index holds, beside what the training set's holds, `label` (int64, new where relabelled),
            `poisoned` (bool), `original_label` (int64), `perturbation` (float32, what was done to the image before the
            trigger, in the norm of the attack; 0 for nothing) and `split` (`training`, or `validation` for the rows
            that were held out before poisoning, of which none is poisoned).
        manifest: one row per poisoned image: `row` (its position), `image_id`, `old_label` and `new_label`.
    """

    batches: Iterator[ImageBatch]
    manifest: pd.DataFrame


def poison_training_set(
    config: Poisoning,
    training_set: ImageSet,
    *,
    rows: np.ndarray,
    seed: int,
    proxy_model: Any = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> PoisonedTrainingSet:
    """Poison a training set: n in = n out, in the same order.

    Which rows are poisoned is decided before any image is read: a seeded sample of the eligible rows. Smaller fractions
    of one seed are part of larger ones.

    Args:
        config: the attack.
        training_set: the whole training split, never a testing set. Never written to.
        rows: positions of the rows that will be trained on; those that are held out for validation are not among them,
            and so stay clean (`training.split_rows` draws them).
        seed: the seed of the cell, used unless the config names its own.
        proxy_model: the trained Keras model that `clean_label` perturbs images against.
        batch_size: images in a batch of the result; the last may be smaller.

    Raises:
        ValueError: when config and set do not fit together, rows are not rows of the set, a fraction above 0 gives no
            poison, or a proxy model is missing or not used; also, while the batches are made, what making them raises.
    """
    config.check_fits(training_set.image_shape, len(training_set.class_names))
    if config.needs_proxy_model and proxy_model is None:
        raise ValueError(f"{config.method} perturbs images against a trained model: give a proxy model")
    if not config.needs_proxy_model and proxy_model is not None:
        raise ValueError(f"{config.method} uses no proxy model: leave it out")
    rows = _checked_rows(training_set, rows)
    labels = training_set.labels
    chosen = select_rows(config, training_set, rows, seed if config.seed is None else config.seed)
    new_labels = labels.copy()
    new_labels[chosen] = config.poisoned_labels(labels[chosen])
    poisoned = np.zeros(len(labels), bool)
    poisoned[chosen] = True
    split = np.full(len(labels), "validation", dtype=object)
    split[rows] = "training"
    index = training_set.index.assign(label=new_labels, poisoned=poisoned, original_label=labels, split=split)
    manifest = pd.DataFrame(
        {
            "row": chosen,
            "image_id": training_set.index["image_id"].to_numpy()[chosen],
            "old_label": labels[chosen],
            "new_label": new_labels[chosen],
        }
    )
    poison = config.prepare(proxy_model, len(training_set.class_names))
    return PoisonedTrainingSet(_batches(config, training_set, index, poison, batch_size), manifest)


def select_rows(config: Poisoning, training_set: ImageSet, rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows to poison, ascending: the first of the eligible among `rows` in an order drawn from `seed`.

    Raises:
        ValueError: when a fraction above 0 gives no row.
    """
    eligible = rows[config.eligible(training_set.labels[rows])]
    count = round(config.poison_fraction * len(eligible))
    if config.poison_fraction > 0 and count == 0:
        raise ValueError(
            f"{training_set.name}: poison_fraction {config.poison_fraction:g} of {len(eligible)} eligible rows "
            f"(target_class {config.target_class}) is no row: raise the fraction, or set it to 0 for a clean set"
        )
    order = np.random.default_rng(derive_seed(seed, "poisoned rows")).permutation(eligible)
    return np.sort(order[:count])


def triggered_testing_set(config: Poisoning, testing_set: ImageSet) -> ImageSet:
    """The testing set with the trigger on every image, stamped as the images are read.

    Labels are the true ones. The index gains `eligible` (bool): the true class is not the target class, so the image
    counts in the attack success rate.

    Raises:
        ValueError: when config and set do not fit together.
    """
    config.check_fits(testing_set.image_shape, len(testing_set.class_names))
    return ImageSet(
        StampedPixels(testing_set.pixels, config.trigger),
        testing_set.index.assign(eligible=testing_set.labels != config.target_class),
        testing_set.class_names,
        name=f"{testing_set.name} with trigger",
    )


@dataclass(frozen=True)
class StampedPixels:
    """Images with a trigger on each, stamped as they are read.

    Attributes:
        pixels: the images without it.
        trigger: the trigger.
    """

    pixels: Pixels
    trigger: Trigger

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, height, width, channels]."""
        return self.pixels.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        """float32 [rows, height, width, channels] in [0, 1]."""
        return self.trigger.stamp(self.pixels[rows])


def _checked_rows(training_set: ImageSet, rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            f"{training_set.name}: rows must be positions [n], they are {rows.dtype} of shape {rows.shape}"
        )
    if len(rows) and (rows.min() < 0 or rows.max() >= len(training_set)):
        raise ValueError(
            f"{training_set.name}: rows {rows.min()} to {rows.max()} given, allowed are 0 to {len(training_set) - 1}"
        )
    if len(np.unique(rows)) < len(rows):
        raise ValueError(f"{training_set.name}: a row is given twice")
    return np.sort(rows)


def _batches(
    config: Poisoning, training_set: ImageSet, index: pd.DataFrame, poison: PoisonImages, batch_size: int
) -> Iterator[ImageBatch]:
    """Batches wait until they hold enough poisons to be made at once, or too many bytes."""
    waiting: list[np.ndarray] = []
    start = done = 0
    for batch in training_set.batches(batch_size):
        waiting.append(np.array(batch.images, np.float32))  # a copy: nothing is written into the set
        done += len(batch.index)
        part = index.iloc[start:done]
        enough = int(part["poisoned"].sum()) >= config.poison_batch_size
        if enough or sum(images.nbytes for images in waiting) >= WINDOW_BYTES or done == len(index):
            yield from _poisoned_window(config, poison, waiting, part)
            waiting, start = [], done


def _poisoned_window(
    config: Poisoning, poison: PoisonImages, waiting: list[np.ndarray], part: pd.DataFrame
) -> Iterator[ImageBatch]:
    batch_of = np.repeat(np.arange(len(waiting)), [len(images) for images in waiting])
    row_of = np.concatenate([np.arange(len(images)) for images in waiting])
    perturbation = np.zeros(len(part), np.float32)
    chosen = np.flatnonzero(part["poisoned"].to_numpy(bool))
    for first in range(0, len(chosen), config.poison_batch_size):
        places = chosen[first : first + config.poison_batch_size]
        clean = np.stack([waiting[batch_of[place]][row_of[place]] for place in places])
        images, perturbation[places] = poison(clean, part["image_id"].iloc[places].tolist())
        for place, image in zip(places, images, strict=True):
            waiting[batch_of[place]][row_of[place]] = image
    part = part.assign(perturbation=perturbation)
    for number, images in enumerate(waiting):
        yield ImageBatch(images, part.iloc[batch_of == number].reset_index(drop=True))
