"""The pixel attack, and the oracle that tries every change of one pixel."""

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from dioptra_assets.robustness.attacks.base import ThreatModel
from dioptra_assets.robustness.attacks.search import Changes, Scorer, SearchAttack

SHADES = 256


class PixelAttack(SearchAttack, frozen=True, extra="forbid"):
    """Replace at most `th` pixels (Kotyan and Vargas 2019, arXiv 1906.06026; for one pixel Su et al. 2017, 1710.08864).

    A pixel is a row, a column and a new value for every channel, a whole number of steps of 1/255. An evolution
    strategy that sees the model's logits alone searches `th` of them at once; where two fall on one place the last
    counts. An image is done as soon as a candidate is classified as wanted. One that is at the start, and one for which
    no candidate was found in `max_iter` generations, are left as they are. The index has the column `found` (bool):
    whether the image, as it stands in the set, is where the attack wants it.

    As in ART 1.20.1, with four differences: the score is the margin in logits, not a probability, which rounds to 1;
    white (255) can be drawn, which ART's rounding down leaves out; a search in which every score ties begins anew; and
    CMA-ES begins at a random place with steps of 0.3 of each range, not at the first pixels of the first row.
    """

    method: Literal["pixel"] = "pixel"
    th: int = Field(ge=1, strict=True, description="Pixels that may be changed, at least 1.")
    es: Literal[0, 1] = Field(default=1, description="Evolution strategy: 0 is CMA-ES, 1 is differential evolution.")

    def threat_model(self) -> ThreatModel:
        """Black-box evasion by at most `th` pixels."""
        return ThreatModel(
            nist_class="evasion",
            knowledge="black-box",
            goal="targeted" if self.targeted else "untargeted",
            norm="0",
            budget=f"L0 <= {self.th} pixels, each of any value in [0, 1]",
        )

    def changes(self, image_shape: tuple[int, int, int]) -> Changes:
        """See the base class."""
        height, width, channels = image_shape
        if self.th > height * width:
            raise ValueError(f"th is {self.th}, but the images have {height * width} pixels: at most that is allowed")
        levels = np.array([height, width] + [SHADES] * channels)

        def apply(images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
            pixels = numbers.reshape(len(images), self.th, 2 + channels)
            rows = np.arange(len(images))
            for pixel in pixels.swapaxes(0, 1):
                images[rows, pixel[:, 0], pixel[:, 1]] = pixel[:, 2:] / np.float32(SHADES - 1)
            return images

        return Changes(np.tile(levels, self.th), apply)

    def art_attack(self, classifier: Any) -> Any:
        """See the base class."""
        from art.attacks.evasion import PixelAttack as ArtPixelAttack

        return ArtPixelAttack(
            classifier, th=self.th, es=self.es, max_iter=self.max_iter, targeted=self.targeted, verbose=False
        )


def one_pixel_oracle(model: Any, images: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Try every change of one pixel of grey images: what no pixel attack with `th` 1 can better.

    Height * width * 256 forward passes an image.

    Args:
        model: a Keras model from float32 [rows, height, width, 1] in [0, 1] to logits.
        images: float32 [n, height, width, 1] in [0, 1].
        labels: int [n], the classes to leave.

    Returns:
        One row per image: `margin` (float32, the smallest margin of the label's logit over the largest other, that a
        change of one pixel leaves), `reachable` (bool: it is negative, so the image can be driven out of its class),
        and the change: `row`, `column` and `shade` (int64, the new value in steps of 1/255).

    Raises:
        ValueError: when the images are not grey.
    """
    if images.ndim != 4 or images.shape[-1] != 1:
        raise ValueError(f"images of shape {images.shape}: the oracle takes grey ones, [n, height, width, 1]")
    changes = PixelAttack(th=1).changes(images.shape[1:])
    every_change = np.indices(tuple(changes.levels), np.int32).reshape(3, -1).T
    rows = []
    for image, label in zip(images, np.asarray(labels, np.int32), strict=True):
        scores = Scorer(model, image[None], label[None], changes, targeted=False)(np.zeros(1, int), every_change[None])
        best = scores.argmin()
        rows.append((scores.min(), scores.min() < 0, *every_change[best].astype(np.int64)))
    return pd.DataFrame(rows, columns=["margin", "reachable", "row", "column", "shade"])
