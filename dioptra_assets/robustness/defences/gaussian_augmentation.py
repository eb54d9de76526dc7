"""Gaussian augmentation: normally distributed noise on the pixels."""

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from dioptra_assets.robustness.defences.base import Defence


class GaussianAugmentation(Defence, frozen=True, extra="forbid"):
    """Each pixel plus noise of standard deviation `sigma`, clipped to [0, 1] (Zantedeschi et al. 2017, 1707.06728).

    Images that a model predicts get noise: n in = n out. Training data get noise too, or with
    `perform_data_augmentation` stay as they are and get noisy copies of `ratio` of them, drawn without replacement,
    beside them. An image's noise depends on the seed and on its position in the set alone.
    """

    draws: ClassVar[bool] = True

    method: Literal["gaussian_augmentation"] = "gaussian_augmentation"
    sigma: float = Field(
        default=1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Standard deviation of the noise; pixels span [0, 1], whatever the architecture. 1 drowns most "
        "images, 0.1 can be seen, 1 of 255 is 0.0039.",
    )
    ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="With perform_data_augmentation: noisy copies for each training image. Else without effect.",
    )
    perform_data_augmentation: bool = Field(
        default=False,
        validate_default=True,
        description="Keep the training images and add noisy copies, instead of making them noisy. Needs apply_fit. "
        "Images to be predicted are never added to.",
    )

    @field_validator("perform_data_augmentation")
    @classmethod
    def _augmentation_is_of_training_data(cls, augment: bool, info: ValidationInfo) -> bool:
        if augment and not info.data.get("apply_fit", True):
            raise ValueError(
                "perform_data_augmentation is true, but apply_fit is false: only training data are added to, set "
                "apply_fit to true"
            )
        return augment

    @property
    def keeps_originals(self) -> bool:
        """See the base class."""
        return self.perform_data_augmentation

    def copied_rows(self, total: int, seed: int) -> np.ndarray:
        """See the base class: `round(ratio * total)` rows."""
        if not self.perform_data_augmentation:
            return super().copied_rows(total, seed)
        generator = np.random.default_rng([seed, total])
        return np.sort(generator.permutation(total)[: round(self.ratio * total)])

    def describe(self) -> str:
        """See the base class."""
        noise = f"Gaussian noise of standard deviation {self.sigma:g}"
        return f"{noise}, added as copies of {self.ratio:.0%} of the training images" if self.keeps_originals else noise

    def transform(self, images: np.ndarray, *, rows: np.ndarray, seed: int) -> np.ndarray:
        """See the base class."""
        noisy = self.noise(images.shape, keys=np.asarray(rows, np.uint64), seed=seed)
        noisy += images
        return np.clip(noisy, 0.0, 1.0, out=noisy)

    def noise(self, shape: tuple[int, ...], *, keys: np.ndarray, seed: int) -> np.ndarray:
        """Noise for a batch of `shape`, float32: each row its own stream, told by `seed` and its key (uint64)."""
        values = np.empty(shape, np.float32)
        # Philox is made to be keyed; keying one generator anew costs a fraction of making one for each image.
        stream = np.random.Philox(key=[seed, 0])
        generator = np.random.Generator(stream)
        beginning = stream.state
        for key, row in zip(keys, values.reshape(shape[0], math.prod(shape[1:])), strict=True):
            beginning["state"]["key"][1] = key
            stream.state = beginning
            generator.standard_normal(dtype=np.float32, out=row)
        values *= np.float32(self.sigma)
        return values
