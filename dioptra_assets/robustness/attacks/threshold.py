"""The threshold attack."""

from typing import Any, Literal

import numpy as np
from pydantic import Field

from dioptra_assets.robustness.attacks.base import ThreatModel
from dioptra_assets.robustness.attacks.search import Changes, SearchAttack

STEPS = 255


class ThresholdAttack(SearchAttack, frozen=True, extra="forbid"):
    """Change every pixel by at most `th` steps of 1/255 (Kotyan and Vargas 2019, arXiv 1906.06026).

    Each channel of each pixel moves by a whole number of steps, at most `th` and no further than black and white, where
    the last step may be a part of one. An evolution strategy that sees the model's logits alone searches all of them at
    once, each between the ends of its own range. An image is done as soon as a candidate is
    classified as wanted. One that is at the start, and one for which no candidate was found in `max_iter` generations,
    are left as they are. The index has the column `found` (bool): whether the image, as it stands in the set, is where
    the attack wants it.

    As in ART 1.20.1, with four differences: the score is the margin in logits, not a probability, which rounds to 1; a
    change counts from the pixel's own value and so keeps to the budget where the image is not one of 8 bits (ART rounds
    the pixel itself down); a search in which every score ties begins anew; and CMA-ES keeps the diagonal of its
    covariance alone, with first steps of 0.3 of the range, not an eighth.
    """

    method: Literal["threshold"] = "threshold"
    th: int = Field(
        ge=1, le=STEPS, strict=True, description="Largest change of any pixel, in steps of 1/255, 1 to 255."
    )
    es: Literal[0, 1] = Field(default=0, description="Evolution strategy: 0 is CMA-ES, 1 is differential evolution.")

    def threat_model(self) -> ThreatModel:
        """Black-box evasion within `th` steps of 1/255 in Linf."""
        return ThreatModel(
            nist_class="evasion",
            knowledge="black-box",
            goal="targeted" if self.targeted else "untargeted",
            norm="inf",
            budget=f"Linf <= {self.th / STEPS:g} ({self.th} of {STEPS}), pixels in [0, 1]",
        )

    def changes(self, image_shape: tuple[int, int, int]) -> Changes:
        """See the base class."""

        def apply(images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
            # A black pixel cannot get darker: its numbers are spread over what it can do, else half of them do nothing.
            least = -np.minimum(_steps(images), self.th)
            most = np.minimum(_steps(1 - images), self.th)
            moves = least + numbers.reshape(images.shape) * (most - least + 1) // (2 * self.th + 1)
            images += moves * np.float32(1 / STEPS)
            return np.clip(images, 0, 1, out=images)

        return Changes(np.full(int(np.prod(image_shape)), 2 * self.th + 1), apply, start=0.5)

    def art_attack(self, classifier: Any) -> Any:
        """See the base class."""
        from art.attacks.evasion import ThresholdAttack as ArtThresholdAttack

        return ArtThresholdAttack(
            classifier, th=self.th, es=self.es, max_iter=self.max_iter, targeted=self.targeted, verbose=False
        )


def _steps(distance: np.ndarray) -> np.ndarray:
    """How many steps of 1/255 a distance takes; a step that rounding alone would add is not counted."""
    return np.ceil(distance * STEPS - 1e-3).astype(np.int32)
