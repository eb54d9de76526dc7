"""Projected gradient descent and the basic iterative method."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from dioptra_assets.robustness.attacks import art_engine, compiled
from dioptra_assets.robustness.attacks.base import Attack, AttackInput, PerturbBatch, Perturbed, ThreatModel
from dioptra_assets.robustness.attacks.fgm import parse_norm
from dioptra_assets.robustness.attacks.losses import Loss, LossField, check_loss, loss_of
from dioptra_assets.robustness.kept import made_of

BallNorm = Literal["inf", 2]


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
    iterate, as in the paper and in ART. One query is a loss with its gradient.
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


def climb(
    model: Any,
    images: compiled.Tensor,
    goals: compiled.Tensor,
    labels: compiled.Tensor,
    starts: compiled.Tensor,
    *,
    eps: compiled.Tensor,
    eps_step: compiled.Tensor,
    steps: compiled.Tensor,
    norm: BallNorm,
    loss: Loss,
    targeted: bool,
    class_count: int,
) -> tuple[compiled.Tensor, compiled.Tensor, compiled.Tensor]:
    """Projected gradient descent on backend tensors, to be called within a compiled function.

    Args:
        model: gives logits.
        images: float32 [rows, height, width, channels] in [0, 1]: the centres of the balls.
        goals: int32 [rows]: the class to reach where targeted, else the class to leave.
        labels: int32 [rows]: the true class.
        starts: float32, shaped as the images: where the first step starts.
        eps: radius of the ball, a number or [rows].
        eps_step: size of one step, a number or [rows].
        steps: how many, an int32 scalar.
        norm: of the ball.
        loss: what is climbed.
        targeted: lower the loss towards the goal instead of raising it.
        class_count: number of classes.

    Returns:
        The last iterates, float32 shaped as the images; whether an image's gradient was zero at every step, and whether
        all its gradients and logits were finite, bool [rows].
    """
    ops = compiled.keras_ops()
    climbed = loss_of(loss, goals, labels, class_count, targeted=targeted)

    def unfinished(step: Any, adversarial: Any, zero: Any, finite: Any) -> Any:
        return step < steps

    def one_step(step: Any, adversarial: Any, zero: Any, finite: Any) -> Any:
        slope, logits = compiled.loss_gradient(model, adversarial, goals, class_count, climbed)
        direction = compiled.steepest(-slope if targeted else slope, norm)
        zero = ops.logical_and(zero, compiled.all_of(ops.equal(slope, 0.0)))
        finite = ops.logical_and(finite, compiled.all_of(ops.isfinite(slope)))
        finite = ops.logical_and(finite, ops.all(ops.isfinite(logits), axis=1))
        moved = compiled.move_on(adversarial, images, direction, step=eps_step, eps=eps, norm=norm)
        return step + 1, moved, zero, finite

    true = ops.ones_like(goals, dtype="bool")
    begin = (ops.convert_to_tensor(0, dtype="int32"), starts, true, true)
    _, adversarial, zero, finite = ops.while_loop(unfinished, one_step, begin)
    return adversarial, zero, finite


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
    run = _compiled_pgd(model, class_count, norm, loss=attack.loss, targeted=attack.targeted, judged=random_starts > 1)

    def perturb(batch: AttackInput) -> Perturbed:
        rows = len(batch.images)
        sizes = np.full((rows, 3), (attack.eps, attack.step_size, attack.steps), compiled.wide())
        generators = [np.random.default_rng([seed, position]) for position in batch.positions.tolist() if random_starts]
        best: dict[str, np.ndarray] = {}
        for _ in range(max(1, random_starts)):
            starts = _random_starts(generators, batch.images, attack.eps, norm) if generators else batch.images
            best = _better(best, run(batch.images, batch.goals, batch.labels, starts, sizes))
        queries = max(1, random_starts) * (attack.steps + (random_starts > 1))
        return Perturbed(
            images=best["images"],
            queries=np.full(rows, queries, np.int64),
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


def _better(best: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of two results, for each image the one that succeeds, then the one with the higher gain; the first of equals."""
    if not best:
        return new
    higher = np.where(new["success"] == best["success"], new["gain"] > best["gain"], new["success"])
    kept = {
        name: np.where(higher.reshape(-1, *[1] * (value.ndim - 1)), new[name], value) for name, value in best.items()
    }
    return kept | {name: best[name] & new[name] for name in ("zero_gradient", "finite")}


def _compiled_pgd(
    model: Any, class_count: int, norm: BallNorm, *, loss: Loss, targeted: bool, judged: bool
) -> Callable[..., dict[str, np.ndarray]]:
    """The attack as a function of arrays (images, goals, labels, starts, sizes).

    A row of sizes is (eps, eps_step, steps), and all rows have the same steps. Compiled once for a model: the attacks
    of a sweep differ in the sizes alone. With `judged` it also gives each image's `success` and `gain` (the loss,
    negated where targeted), at one more query.
    """
    key = "pgd", class_count, norm, loss, targeted, judged
    return made_of(
        model, key, lambda: _compile_pgd(model, class_count, norm, loss=loss, targeted=targeted, judged=judged)
    )


def _compile_pgd(
    model: Any, class_count: int, norm: BallNorm, *, loss: Loss, targeted: bool, judged: bool
) -> Callable[..., dict[str, np.ndarray]]:
    ops = compiled.keras_ops()

    def pgd(images: Any, goals: Any, labels: Any, starts: Any, sizes: Any) -> dict[str, compiled.Tensor]:
        adversarial, zero, finite = climb(
            model,
            images,
            goals,
            labels,
            starts,
            eps=sizes[:, 0],
            eps_step=sizes[:, 1],
            steps=ops.cast(sizes[0, 2], "int32"),
            norm=norm,
            loss=loss,
            targeted=targeted,
            class_count=class_count,
        )
        results = {"images": adversarial, "zero_gradient": zero, "finite": finite}
        return results | judge(adversarial, goals, labels, finite) if judged else results

    def judge(adversarial: Any, goals: Any, labels: Any, finite: Any) -> dict[str, compiled.Tensor]:
        logits = compiled.logits_of(model, adversarial)
        at_goal = ops.equal(ops.cast(ops.argmax(logits, axis=1), "int32"), goals)
        climbed = loss_of(loss, goals, labels, class_count, targeted=targeted)(logits)
        return {
            "success": at_goal if targeted else ops.logical_not(at_goal),
            "gain": -climbed if targeted else climbed,
            "finite": ops.logical_and(finite, ops.all(ops.isfinite(logits), axis=1)),
        }

    return compiled.compile_batches(pgd)
