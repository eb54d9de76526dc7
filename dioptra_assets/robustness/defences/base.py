"""What every preprocessing defence has: a typed config, and the way it runs over training data and over predictions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import DEFAULT_BATCH_SIZE, ImageBatch, ImageSet
from dioptra_assets.robustness.training.loop import split_labels

COPY_SUFFIX = "#noise"


class Defence(BaseModel, ABC, frozen=True, extra="forbid"):
    """Config of a preprocessing defence. Closed: an unknown field is an error, and so is a value out of bounds.

    A subclass sets `method` to its own name and says what becomes of an image; where that is done, to the images a
    model is fitted on or to those it predicts, is seen to here.

    Attributes:
        draws: whether `transform` draws at random, so that another seed gives other images. An adaptive attack then
            faces the mean over many draws.
    """

    draws: ClassVar[bool] = False

    method: str
    apply_fit: bool = Field(default=False, description="Defend the training data that a model is fitted on.")
    apply_predict: bool = Field(default=True, description="Defend the images that a model predicts.")

    @abstractmethod
    def describe(self) -> str:
        """What is done to an image, in a few words and with the numbers."""

    @abstractmethod
    def transform(self, images: np.ndarray, *, rows: np.ndarray, seed: int) -> np.ndarray:
        """The defended images, whatever the flags say.

        Args:
            images: float32 [n, height, width, channels] in [0, 1]; never written to.
            rows: int [n], the position of each image in its set. What is drawn at random for an image depends on the
                seed and on its position alone, so that the batch size changes nothing.
            seed: 0 or more.

        Returns:
            float32, shaped as `images`, in [0, 1].
        """

    @property
    def keeps_originals(self) -> bool:
        """Whether training data keep their images and get defended copies of some beside them."""
        return False

    def copied_rows(self, total: int, seed: int) -> np.ndarray:
        """With `keeps_originals`: the rows, of `total` training rows, that get a copy; int64, ascending."""
        return np.empty(0, np.int64)

    def on_prediction(self, images: np.ndarray, *, rows: np.ndarray, seed: int) -> np.ndarray:
        """The images as a defended model sees them when it predicts: n in = n out. See :meth:`transform`."""
        return self.transform(images, rows=rows, seed=seed) if self.apply_predict else images

    def on_training(
        self, images: np.ndarray, labels: np.ndarray, *, rows: np.ndarray, seed: int, total: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The images and labels that a defended model is fitted on, of a training set or of a batch of it.

        Args:
            images: float32 [n, height, width, channels] in [0, 1].
            labels: [n].
            rows: int [n], the position of each image in the training set.
            seed: 0 or more.
            total: number of images in the training set, which decides with the seed which rows are copied.

        Returns:
            Images and labels, each image with its own label: n, and after them the copies where the defence adds some.
        """
        if not self.apply_fit:
            return images, labels
        if not self.keeps_originals:
            return self.transform(images, rows=rows, seed=seed), labels
        copied = np.isin(rows, self.copied_rows(total, seed))
        copies = self.transform(images[copied], rows=rows[copied], seed=seed)
        return np.concatenate([images, copies]), np.concatenate([labels, labels[copied]])


@runtime_checkable
class AddsNoise(Protocol):
    """A defence that adds noise and clips: what it draws does not depend on the image, so its gradient is known."""

    def noise(self, shape: tuple[int, ...], *, keys: np.ndarray, seed: int) -> np.ndarray:
        """Noise for a batch of `shape`, float32: each row its own stream, told by `seed` and its key (uint64)."""
        ...


def defend_set(
    defence: Defence,
    image_set: ImageSet,
    *,
    seed: int,
    batch_size: int = DEFAULT_BATCH_SIZE,
    training: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[ImageBatch]:
    """Defend every image of a set, a batch at a time, in the same order.

    As images to be predicted (`apply_predict` counts): n in = n out. With `training`, as data that a model is fitted on
    (`apply_fit` counts): the batches of :func:`defended_training_set`.

    Args:
        defence: what to do.
        image_set: any set: testing, adversarial, triggered, training, ... Never written to.
        seed: the seed of the cell, 0 or more.
        batch_size: images defended at once; it bounds the memory and changes nothing else.
        training: the set is training data.
        progress: called after each batch with the images done and the images in all.

    Raises:
        NonFiniteError: where an image is not finite; set and image ids are named.
        ValueError: when pixels leave [0, 1] or `batch_size` is below 1.
    """
    seen = defended_training_set if training else defended
    image_set = seen(defence, image_set, seed=seed)
    return _with_progress(image_set.batches(batch_size), len(image_set), progress)


def defended(defence: Defence, image_set: ImageSet, *, seed: int) -> ImageSet:
    """A set as a model behind the defence sees it when it predicts, computed as it is read.

    Raises:
        NonFiniteError, ValueError: as :func:`defend_set`, when the images are read.
    """
    return replace(image_set, pixels=DefendedPixels(image_set, defence, seed, training=False))


def defended_training_set(defence: Defence, image_set: ImageSet, *, seed: int) -> ImageSet:
    """A training set as a model with this defence is fitted on it, computed as it is read.

    The copies that a defence adds stand after the n images, in their order, with the id `ID#noise` and the label of
    their original. Split validation rows off before, not after: a copy tells of its original.

    Raises:
        NonFiniteError, ValueError: as :func:`defend_set`, when the images are read.
    """
    pixels = DefendedPixels(image_set, defence, seed, training=True)
    copies = image_set.index.iloc[pixels.copied].assign(image_id=lambda index: index["image_id"] + COPY_SUFFIX)
    index = pd.concat([image_set.index, copies], ignore_index=True) if len(copies) else image_set.index
    return replace(image_set, pixels=pixels, index=index)


def split_before_copies(image_set: ImageSet, validation_split: float, seed: int) -> ImageSet:
    """A defended training set with the column `split`, as `training.split_rows` would split its originals.

    A copy of an image that is held out is neither trained nor validated on (`left out`): it tells of its original.

    Raises:
        ValueError: when a class has too few images to stand on both sides.
    """
    ids = image_set.index["image_id"]
    originals = ids[~ids.str.endswith(COPY_SUFFIX)]
    labels = image_set.labels[: len(originals)]
    _, held_out = split_labels(labels, validation_split, seed, image_set.name)
    split = pd.Series("training", index=originals.to_numpy())
    split.iloc[held_out] = "validation"
    of_copies = split.loc[ids[len(originals) :].str.removesuffix(COPY_SUFFIX)].replace("validation", "left out")
    return replace(
        image_set, index=image_set.index.assign(split=np.concatenate([split.to_numpy(), of_copies.to_numpy()]))
    )


@dataclass(frozen=True)
class DefendedPixels:
    """The pixels of a set behind a defence: see `Pixels`.

    Attributes:
        source: the set.
        defence: what is done to it.
        seed: of the cell.
        training: whether `apply_fit` or `apply_predict` counts.
    """

    source: ImageSet
    defence: Defence
    seed: int
    training: bool

    @property
    def copied(self) -> np.ndarray:
        """The rows of the source that stand once more after its last row."""
        adds = self.training and self.defence.apply_fit and self.defence.keeps_originals
        return self.defence.copied_rows(len(self.source), self.seed) if adds else np.empty(0, np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, height, width, channels], copies included."""
        return (len(self.source) + len(self.copied), *self.source.image_shape)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """The defended images of `rows`, float32."""
        n, copied = len(self.source), self.copied
        start, stop, _ = rows.indices(n + len(copied))
        parts = []
        if start < n or start >= stop:
            parts.append(self._originals(np.arange(start, min(stop, n))))
        if stop > n:
            parts.append(self._copies(copied[max(start - n, 0) : stop - n]))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _originals(self, rows: np.ndarray) -> np.ndarray:
        images = self._read(rows)
        if not self.training:
            return self.defence.on_prediction(images, rows=rows, seed=self.seed)
        unchanged = self.defence.keeps_originals or not self.defence.apply_fit
        return images if unchanged else self.defence.transform(images, rows=rows, seed=self.seed)

    def _copies(self, rows: np.ndarray) -> np.ndarray:
        # Stored images are read by the range, so the copies of one stretch of the source are made together.
        stretches = np.split(rows, np.flatnonzero(np.diff(rows // DEFAULT_BATCH_SIZE)) + 1)
        read = [self._read(np.arange(part[0], part[-1] + 1))[part - part[0]] for part in stretches if len(part)]
        return self.defence.transform(np.concatenate(read), rows=rows, seed=self.seed)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) == 0:
            return np.empty((0, *self.source.image_shape), np.float32)
        images = np.asarray(self.source.pixels[slice(int(rows[0]), int(rows[-1]) + 1)], np.float32)
        _check_pixels(images, self.source, rows)
        return images


def _check_pixels(images: np.ndarray, source: ImageSet, rows: np.ndarray) -> None:
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        bad = source.index["image_id"].iloc[rows[~finite]].tolist()
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise NonFiniteError(
            f"{source.name}: non-finite pixels at {len(bad)} images of one batch: {', '.join(bad[:5])}{more}"
        )
    if images.min() < 0 or images.max() > 1:
        raise ValueError(f"{source.name}: pixels reach from {images.min()} to {images.max()}, they must lie in [0, 1]")


def _with_progress(
    batches: Iterator[ImageBatch], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[ImageBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.index)
        if progress is not None:
            progress(done, total)
