"""The baseline backdoor: a trigger and a wrong label."""

from typing import Literal

import numpy as np
from pydantic import Field

from dioptra_assets.robustness.attacks.base import ThreatModel
from dioptra_assets.robustness.poisoning.base import Poisoning


class BaselineBackdoor(Poisoning, frozen=True, extra="forbid"):
    """Trigger and relabel (BadNets: Gu et al. 2017, arXiv 1708.06733, section 4.2, "all-to-one").

    Eligible are the training rows of every class but the target class, whose images would be relabelled as what they
    are already.
    """

    method: Literal["baseline"] = "baseline"
    label_type: Literal["train", "test"] = Field(
        default="train",
        description="train: poisoned rows get the target class as label; test: they keep their own, which teaches "
        "a model to ignore the trigger.",
    )

    def threat_model(self) -> ThreatModel:
        """An attacker who can change images and labels of some training rows, and knows nothing of the model."""
        return ThreatModel(
            nist_class="backdoor poisoning",
            knowledge="black-box",
            goal="targeted",
            norm="0",
            budget=f"{self.poison_fraction:.4g} of the training rows of other classes, "
            f"{'relabelled' if self.label_type == 'train' else 'labels kept'}; trigger of "
            f"{self.trigger.pixel_count} pixels",
        )

    def eligible(self, labels: np.ndarray) -> np.ndarray:
        """The rows that do not belong to the target class."""
        return labels != self.target_class

    def poisoned_labels(self, labels: np.ndarray) -> np.ndarray:
        """The target class, or with `label_type` test the labels they have."""
        return np.full_like(labels, self.target_class) if self.label_type == "train" else labels
