"""Each set is read once a cell: what is asked of its pixels is asked while they pass."""

import math

import numpy as np
import pandas as pd

from dioptra_assets.robustness.image_set import ImageSet, Pixels

# A set of up to so many bytes is held in memory while several models look at it; a larger one is read by each.
MOST_HELD = 512 * 2**20


def held(image_set: ImageSet) -> ImageSet:
    """The set in memory, read once, where it is small enough; else the set."""
    if 4 * math.prod(image_set.pixels.shape) > MOST_HELD:
        return image_set
    images, _ = image_set.to_numpy()
    return ImageSet(images, image_set.index, image_set.class_names, image_set.name)


class Passing:
    """Pixels on their way to an attack, kept until what was made of them has come back.

    Attributes:
        shape: of all of them, [n, height, width, channels].
    """

    def __init__(self, pixels: Pixels) -> None:
        self.shape = pixels.shape
        self._pixels = pixels
        self._kept: list[tuple[int, np.ndarray]] = []

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, _, _ = rows.indices(self.shape[0])
        images = self._pixels[rows]
        self._kept.append((start, images))
        return images

    def taken(self, start: int, stop: int) -> np.ndarray:
        """The images from `start` to `stop`, which have been read; they and those before them are let go."""
        parts = [
            images[max(start - first, 0) : stop - first]
            for first, images in self._kept
            if first < stop and first + len(images) > start
        ]
        self._kept = [(first, images) for first, images in self._kept if first + len(images) > stop]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Change:
    """How far the images of a set are changed, what that took, and what some of them look like before and after.

    Attributes:
        n: how many images have passed.
        queries: evaluations of the model, of all of them.
        without_gradient: how many had a gradient of zero.
        share: of the images that differ at all, 0 to 1.
        largest: the largest difference of any pixel, 0 to 1.
        before: the images at the rows that are shown, float32 [shown, height, width, channels].
        after: what became of them.
    """

    def __init__(self, shape: tuple[int, ...], shown: np.ndarray) -> None:
        self.n = self.queries = self.without_gradient = 0
        self._changed = 0
        self._places = {int(row): place for place, row in enumerate(shown)}
        self.largest = 0.0
        self.before = np.zeros((len(shown), *shape[1:]), np.float32)
        self.after = np.zeros_like(self.before)

    def add(self, before: np.ndarray, after: np.ndarray, index: pd.DataFrame) -> None:
        """The next images, before and after, with their rows of the adversarial set's index."""
        self.queries += int(index["queries"].sum())
        self.without_gradient += int(index["zero_gradient"].sum())
        differences = np.abs(after - before).max(axis=(1, 2, 3))
        self._changed += int((differences > 0).sum())
        self.largest = max(self.largest, float(differences.max()))
        for row, place in self._places.items():
            if 0 <= row - self.n < len(before):
                self.before[place], self.after[place] = before[row - self.n], after[row - self.n]
        self.n += len(before)

    @property
    def share(self) -> float:
        """See above."""
        return self._changed / self.n
