"""Projected gradient descent and the basic iterative method.

Why: docs/decisions/0031-early-stop-is-a-choice.md
"""

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from dioptra_assets.robustness.attacks import art_engine
from dioptra_assets.robustness.attacks.base import Attack, AttackInput, PerturbBatch, Perturbed, ThreatModel
from dioptra_assets.robustness.attacks.climb import BallNorm, Climb, climb_all, climb_and_stop
from dioptra_assets.robustness.attacks.fgm import parse_norm
from dioptra_assets.robustness.attacks.losses import LossField, check_loss


def parse_ball_norm(value: object) -> object:
    """`inf` or `2` in any way YAML or Python writes them.

    Raises:
        ValueError: for any other norm.
    """
    try:
        norm = parse_norm(value)
    except ValueError:
        norm = None
    if norm not in {"inf", 2}:
        raise ValueError(f"norm is {value!r}: allowed are inf and 2")
    return norm


class IterativeMethod(Attack, frozen=True, extra="forbid"):
    """What the attacks share that climb the loss in several steps within a ball."""

    eps: float = Field(
        gt=0, allow_inf_nan=False, description="Radius of the ball, above 0, in the norm; pixels span [0, 1]."
    )
    steps: int = Field(default=40, ge=1, le=100_000, strict=True, description="Steps up the gradient, at least 1.")
    eps_step: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Size of one step, above 0, in the norm. Left out: 2.5 eps / steps, which crosses the ball from "
        "anywhere in it and leaves some for moving along the border.",
    )

    @field_validator("eps_step")
    @classmethod
    def _border_within_reach(cls, eps_step: float | None, info: ValidationInfo) -> float | None:
        eps, steps = info.data.get("eps"), info.data.get("steps")
        if eps_step and eps and steps and steps * eps_step < eps * (1 - 1e-9):
            raise ValueError(
                f"eps_step is {eps_step:g}, but {steps} such steps reach {steps * eps_step:g}, less than eps {eps:g}: "
                f"at least {eps / steps:g} is allowed, or more steps"
            )
        return eps_step

    loss: LossField = "cross_entropy"
    early_stop: bool = Field(
        default=False,
        description="Let each image go at the first step at which it is where the attack wants it. Whatever falls to "
        "all steps falls here too, most often in a fraction of the time, and what does not is the same image; but one "
        "that fell stands just beyond the border, so it says less of other models (transfer) and of defences.",
    )

    @field_validator("early_stop")
    @classmethod
    def _early_stop_is_ours(cls, early_stop: bool, info: ValidationInfo) -> bool:
        if early_stop and info.data.get("engine") == "art":
            raise ValueError("early_stop is true with the engine art: use the engine compiled, ART takes all steps")
        return early_stop

    def check_classes(self, class_count: int) -> None:
        """See the base class; refuses a loss too that needs more classes."""
        super().check_classes(class_count)
        check_loss(self.loss, class_count, targeted=self.targeted)

    @property
    def step_size(self) -> float:
        """Size of one step, as given or by default."""
        return 2.5 * self.eps / self.steps if self.eps_step is None else self.eps_step


class ProjectedGradientDescent(IterativeMethod, frozen=True, extra="forbid"):
    """Many small steps up the gradient of the loss, each projected back on the ball (Madry et al. 2018).

    Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv 1706.06083, sections 2.1 and 4. The loss is the
    cross-entropy of the true label, taken on logits, or another (`loss`); a step has length `eps_step` in the norm in
    the direction that raises the loss most (Linf: the sign of the gradient; L2: the gradient scaled to length 1), is
    clipped to [0, 1] and projected on the ball of `eps` around the image. With `targeted` the loss towards the target
    class is lowered instead. The result is the last iterate, as in the paper and in ART.

    A start is drawn uniformly from the ball and clipped to [0, 1]; what is drawn depends on the seed and on the image's
    position in the set alone, and further starts leave those before them as they are. Of several starts each image
    keeps the one that succeeds, and among those that do, or where none does, the one with the highest loss (targeted:
    the lowest). One query is a loss with its gradient; where there are several starts, one more judges each result.

    With `early_stop` an image is done with the first iterate, its start included, that is classified as wanted (by more
    than the rounding of a forward pass), and with its first start that gets there; only the others are asked for
    further, and `queries` counts what each was asked for. The last iterate of an image may be classified right where
    one before it was not, so an attack that stops is never weaker, image by image, on the model it attacks.

    The norm 1 is left out: its ball meets the box of the pixels in a corner that neither the steepest pixel nor the
    projection on the ball alone makes good use of (Croce & Hein 2021, arXiv 2103.01208).
    """

    method: Literal["pgd"] = "pgd"
    norm: Annotated[BallNorm, BeforeValidator(parse_ball_norm)] = Field(
        default="inf", validate_default=True, description="inf or 2."
    )
    random_starts: int = Field(
        default=1,
        ge=0,
        le=1000,
        strict=True,
        validate_default=True,
        description="Starts drawn from the ball, the best of which is kept for each image; 0 starts at the image.",
    )

    @field_validator("norm")
    @classmethod
    def _eps_within_the_box(cls, norm: BallNorm, info: ValidationInfo) -> BallNorm:
        eps = info.data.get("eps")
        if norm == "inf" and eps is not None and eps > 1:
            raise ValueError(
                f"eps is {eps:g} in the norm inf: at most 1 is allowed, pixels span [0, 1] (8 of 255 is 0.0314)"
            )
        return norm

    @field_validator("random_starts")
    @classmethod
    def _starts_are_ours(cls, random_starts: int, info: ValidationInfo) -> int:
        if random_starts and info.data.get("engine") == "art":
            raise ValueError(
                f"random_starts is {random_starts} with the engine art: set it to 0, or use the engine compiled; ART "
                "draws its starts batch by batch from the global generator, so that the batch size changes them"
            )
        return random_starts

    def threat_model(self) -> ThreatModel:
        """White-box evasion within `eps` of the norm."""
        return _threat_model(self, self.norm)

    def prepare(self, model: Any, *, seed: int, class_count: int) -> PerturbBatch:
        """See the base class."""
        return _prepare(self, model, self.norm, self.random_starts, seed=seed, class_count=class_count)


class BasicIterativeMethod(IterativeMethod, frozen=True, extra="forbid"):
    """The fast gradient sign method in several small steps (Kurakin et al. 2017, arXiv 1607.02533, section 2.2).

    Projected gradient descent in Linf that starts at the image; nothing is drawn at random. The result is the last
    iterate, as in the paper and in ART, or with `early_stop` the first that is classified as wanted. One query is a
    loss with its gradient.
    """

    method: Literal["bim"] = "bim"
    eps: float = Field(
        gt=0, le=1, allow_inf_nan=False, description="Largest change of a pixel, above 0, at most 1, the whole range."
    )
    steps: int = Field(default=10, ge=1, le=100_000, strict=True, description="Steps up the gradient, at least 1.")

    def threat_model(self) -> ThreatModel:
        """White-box evasion within `eps` of Linf."""
        return _threat_model(self, "inf")

    def prepare(self, model: Any, *, seed: int, class_count: int) -> PerturbBatch:
        """See the base class. Nothing is drawn at random: `seed` changes nothing."""
        return _prepare(self, model, "inf", 0, seed=seed, class_count=class_count)


def _threat_model(attack: IterativeMethod, norm: BallNorm) -> ThreatModel:
    return ThreatModel(
        nist_class="evasion",
        knowledge="white-box",
        goal="targeted" if attack.targeted else "untargeted",
        norm=str(norm),
        budget=f"L{norm} <= {attack.eps:g}, pixels in [0, 1]",
    )


def _prepare(
    attack: IterativeMethod, model: Any, norm: BallNorm, random_starts: int, *, seed: int, class_count: int
) -> PerturbBatch:
    if attack.engine == "art":
        return art_engine.prepare(model, class_count, lambda classifier: _art(attack, classifier, norm))
    several, stops = random_starts > 1, attack.early_stop
    climb = Climb(
        class_count, norm, loss=attack.loss, targeted=attack.targeted, judged=several and not stops, stops=stops
    )
    run = climb.of(model)
    judge = replace(climb, judged=True, stops=False).of(model) if several and stops else None
    size = (attack.eps, attack.step_size, attack.steps)

    def ascend(batch: AttackInput, starts: np.ndarray) -> dict[str, np.ndarray]:
        return climb_and_stop(run, batch, starts, size, judge) if stops else climb_all(run, batch, starts, size)

    def perturb(batch: AttackInput) -> Perturbed:
        rows = len(batch.images)
        generators = [np.random.default_rng([seed, position]) for position in batch.positions.tolist() if random_starts]
        best: dict[str, np.ndarray] = {}
        going = np.arange(rows)
        for _ in range(max(1, random_starts)):
            part = batch.part(going)
            drawing = [generators[row] for row in going.tolist() if random_starts]
            starts = _random_starts(drawing, part.images, attack.eps, norm) if drawing else part.images
            best = _better(best, ascend(part, starts), going)
            if judge:
                going = np.flatnonzero(~best["success"] & best["finite"])
                if not len(going):
                    break
        return Perturbed(
            images=best["images"],
            queries=best["queries"],
            zero_gradient=best["zero_gradient"],
            finite=best["finite"],
        )

    return perturb


def _art(attack: IterativeMethod, classifier: Any, norm: BallNorm) -> Any:
    # ART's implementation on numpy: the one on TensorFlow takes its steps in single precision.
    from art.attacks.evasion import ProjectedGradientDescentNumpy

    return ProjectedGradientDescentNumpy(
        classifier,
        norm=math.inf if norm == "inf" else norm,
        eps=float(attack.eps),
        eps_step=float(attack.step_size),
        max_iter=attack.steps,
        targeted=attack.targeted,
        num_random_init=0,
        batch_size=attack.batch_size,
        verbose=False,
    )


def _random_starts(generators: list[np.random.Generator], images: np.ndarray, eps: float, norm: BallNorm) -> np.ndarray:
    drawn = np.stack([_within_ball(generator, images.shape[1:], norm) for generator in generators])
    return np.clip(images + eps * drawn, 0.0, 1.0).astype(np.float32)


def _within_ball(generator: np.random.Generator, shape: tuple[int, ...], norm: BallNorm) -> np.ndarray:
    """A point drawn uniformly from the ball of radius 1."""
    if norm == "inf":
        return generator.uniform(-1.0, 1.0, shape)
    point = generator.normal(size=shape)
    return point * generator.random() ** (1 / point.size) / np.linalg.norm(point)


def _better(best: dict[str, np.ndarray], new: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The best so far, where `rows` of it have a new result.

    Of two results each image has the one that succeeds, then the one with the higher gain; the first of equals.
    """
    if not best:
        return new
    old = {name: value[rows] for name, value in best.items()}
    higher = np.where(new["success"] == old["success"], new["gain"] > old["gain"], new["success"])
    kept = {
        name: np.where(higher.reshape(-1, *[1] * (value.ndim - 1)), new[name], value) for name, value in old.items()
    }
    kept |= {name: old[name] & new[name] for name in ("zero_gradient", "finite")}
    kept["queries"] = old["queries"] + new["queries"]
    merged = {name: value.copy() for name, value in best.items()}
    for name, value in kept.items():
        merged[name][rows] = value
    return merged
