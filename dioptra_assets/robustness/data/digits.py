"""Handwritten digits that come with scikit-learn: real, small and offline."""

from typing import Literal

import numpy as np
from pydantic import Field

from dioptra_assets.robustness.data.base import DataSource, Side, Split
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.seeds import MAX_SEED, derive_seed


class DigitsSource(DataSource, frozen=True):
    """The 1,797 digits of `sklearn.datasets.load_digits`, 8 x 8 in 17 grey levels, resized.

    They are the test part of the UCI "Optical Recognition of Handwritten Digits" data. The split is stratified and
    depends on `test_fraction` and `seed` alone; an image keeps its id, `digits-0000` to `digits-1796`, in every split.

    Attributes:
        image_size: (height, width) in pixels.
        test_fraction: share of the images that become the testing set.
        seed: seed of the split.
    """

    source: Literal["digits"] = "digits"
    image_size: tuple[Side, Side] = (28, 28)
    test_fraction: float = Field(default=0.2, ge=0.05, le=0.95)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, 1)."""
        return *self.image_size, 1

    def class_count(self) -> int:
        """Ten."""
        return 10

    def load(self, split: Split) -> ImageSet:
        """The digits of one split in the order of their ids, float32 [n, height, width, 1] in [0, 1]."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
        training, testing = train_test_split(
            np.arange(len(labels)),
            test_size=self.test_fraction,
            stratify=labels,
            random_state=derive_seed(self.seed, "digits", "split"),
        )
        rows = np.sort(training if split == "training" else testing)
        return ImageSet.from_arrays(
            _resize(images[rows].reshape(-1, 8, 8) / 16, self.image_size),
            labels[rows],
            [str(digit) for digit in range(10)],
            image_ids=[f"digits-{row:04d}" for row in rows],
            name=f"digits/{split}_set",
        )


def _resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[n, 8, 8] in [0, 1] as float32 [n, height, width, 1]; bicubic overshoots, so the result is clipped to [0, 1]."""
    from PIL import Image

    height, width = size
    resized = [
        np.asarray(Image.fromarray(image.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        for image in images
    ]
    return np.clip(np.stack(resized)[..., np.newaxis], 0, 1)
