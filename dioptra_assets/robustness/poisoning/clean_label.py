"""The clean-label backdoor: images made hard to recognise, then the trigger, and the right label."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from dioptra_assets.robustness.attacks.base import AttackInput, ThreatModel
from dioptra_assets.robustness.attacks.base import _check_model as check_model
from dioptra_assets.robustness.attacks.pgd import BallNorm, ProjectedGradientDescent, parse_ball_norm
from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.memory import MOST_AT_ONCE
from dioptra_assets.robustness.poisoning.base import PoisonImages, Poisoning


class CleanLabelBackdoor(Poisoning, frozen=True, extra="forbid"):
    """Perturb, then trigger, labels unchanged (Turner, Tsipras and Madry 2018, "Clean-Label Backdoor Attacks").

    Eligible are the training rows of the target class. Each poisoned image is first moved away from its class by
    projected gradient ascent on the loss of a proxy model, so that the trigger is the easiest thing to learn from it:
    `steps` steps of `eps_step` from the image itself, each brought back to the ball of `eps` around it and to [0, 1].
    """

    method: Literal["clean_label"] = "clean_label"
    poison_fraction: float = Field(
        default=0.33,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the target class's training rows that are poisoned, 0 (none) to 1 (all): "
        "round(poison_fraction * eligible) rows, halves to even, drawn without replacement.",
    )
    norm: Annotated[BallNorm, BeforeValidator(parse_ball_norm)] = Field(default=2, description="inf or 2.")
    eps: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="Radius of the perturbation before the trigger, above 0, in the norm; pixels span [0, 1].",
    )
    eps_step: float = Field(
        default=0.1, gt=0, allow_inf_nan=False, description="Length of a step, above 0, in the norm."
    )
    steps: int = Field(default=200, ge=1, le=100_000, strict=True, description="Steps up the gradient, at least 1.")
    batch_size: int = Field(
        default=256, ge=1, le=MOST_AT_ONCE, strict=True, description="Images perturbed at once, at least 1."
    )
    proxy_architecture: str | None = Field(
        default=None,
        description="Architecture key of the model that images are perturbed against. Left out: the first there is.",
    )

    @model_validator(mode="after")
    def _ascent_is_possible(self) -> "CleanLabelBackdoor":
        self._ascent()  # refuses an eps beyond the box, and steps that cannot reach it
        return self

    @property
    def needs_proxy_model(self) -> bool:
        """Yes."""
        return True

    @property
    def poison_batch_size(self) -> int:
        """`batch_size`."""
        return self.batch_size

    def threat_model(self) -> ThreatModel:
        """An attacker who can change some images of one class, never a label, and has a model of the same task."""
        return ThreatModel(
            nist_class="backdoor poisoning",
            knowledge="black-box",
            goal="targeted",
            norm=str(self.norm),
            budget=f"{self.poison_fraction:.4g} of the training rows of the target class, labels kept; "
            f"L{self.norm} <= {self.eps:g}, pixels in [0, 1], and a trigger of {self.trigger.pixel_count} pixels",
        )

    def eligible(self, labels: np.ndarray) -> np.ndarray:
        """The rows of the target class."""
        return labels == self.target_class

    def poisoned_labels(self, labels: np.ndarray) -> np.ndarray:
        """The labels they have."""
        return labels

    def prepare(self, proxy_model: Any, class_count: int) -> PoisonImages:
        """See the base class. The function raises NonFiniteError where the proxy model gives no number for an image.

        Raises:
            ValueError: when the proxy model does not give `class_count` logits.
        """
        check_model(proxy_model, class_count)
        # Nothing is drawn at random without random starts, so no seed matters.
        perturb = self._ascent().prepare(proxy_model, seed=0, class_count=class_count)
        order = np.inf if self.norm == "inf" else self.norm

        def poison(images: np.ndarray, image_ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
            goals = np.full(len(images), self.target_class, np.int32)
            perturbed = perturb(AttackInput(images, goals, labels=goals, positions=np.arange(len(images))))
            finite = perturbed.finite & np.isfinite(perturbed.images).all(axis=(1, 2, 3))
            if not finite.all():
                bad = [image_id for image_id, good in zip(image_ids, finite, strict=True) if not good]
                raise NonFiniteError(
                    f"clean_label: non-finite pixels, logits or gradients of the proxy model at {len(bad)} images of "
                    f"one batch: {', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}"
                )
            change = (perturbed.images.astype(np.float64) - images).reshape(len(images), -1)
            return self.trigger.stamp(perturbed.images), np.linalg.norm(change, ord=order, axis=1).astype(np.float32)

        return poison

    def _ascent(self) -> ProjectedGradientDescent:
        return ProjectedGradientDescent(
            eps=self.eps,
            eps_step=self.eps_step,
            steps=self.steps,
            norm=self.norm,
            random_starts=0,
            batch_size=self.batch_size,
        )
