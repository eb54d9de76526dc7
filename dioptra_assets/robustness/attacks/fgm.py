"""The fast gradient method."""

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from dioptra_assets.robustness.attacks import art_engine, compiled
from dioptra_assets.robustness.attacks.base import Attack, AttackInput, PerturbBatch, Perturbed, ThreatModel
from dioptra_assets.robustness.attacks.losses import Loss, LossField, check_loss, loss_of
from dioptra_assets.robustness.model_cache import made_of

MOST_LEVELS = 1000


def parse_norm(value: object) -> object:
    """`inf`, `1` or `2` in any way YAML or Python writes them.

    Raises:
        ValueError: for any other norm.
    """
    text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, int | float) else ""
    norms: dict[str, compiled.Norm] = {"inf": "inf", "1": 1, "2": 2}
    if text not in norms or isinstance(value, bool):
        raise ValueError(f"norm is {value!r}: allowed are inf, 1 and 2")
    return norms[text]


class FastGradientMethod(Attack, frozen=True, extra="forbid"):
    """One step up the gradient of the loss (Goodfellow et al. 2015, arXiv 1412.6572, section 4).

    The loss is the cross-entropy of the true label, taken on logits, or another (`loss`); the step has length `eps` in
    the norm, in the direction that raises the loss most (Linf: the sign of the gradient, as in the paper; L2: the
    gradient scaled to length 1; L1: the steepest pixel alone), and the result is clipped to [0, 1]. With `targeted` the
    loss towards the target class is lowered instead.

    With `minimal` each image gets the smallest of the levels `eps_step`, 2 `eps_step`, ... `eps` (the last is `eps`
    itself) that takes the prediction away from the true label, or with `targeted` to the target class. Images already
    there are left as they are, and so are images that no level takes there: a search for the smallest perturbation that
    found none has nothing to show, its image is still classified as before, and a perturbation kept from a failure
    would enter the distances of the successes (CleverHans' and Foolbox's minimal attacks return the original too).
    The index then has the column `found` (bool): whether the image, as it stands in the set, is where the attack wants
    it.
    """

    one_step: ClassVar[bool] = True

    method: Literal["fgm"] = "fgm"
    eps: float = Field(
        gt=0, allow_inf_nan=False, description="Size of the step, above 0, in the norm; pixels span [0, 1]."
    )
    norm: Annotated[compiled.Norm, BeforeValidator(parse_norm)] = Field(
        default="inf", validate_default=True, description="inf, 1 or 2."
    )
    minimal: bool = Field(default=False, description="Search each image's smallest sufficient step up to eps.")
    eps_step: float = Field(
        default=0.1,
        gt=0,
        allow_inf_nan=False,
        validate_default=True,
        description="With minimal: distance of the levels tried, at most eps. Else without effect.",
    )
    loss: LossField = "cross_entropy"

    @field_validator("norm")
    @classmethod
    def _eps_within_the_box(cls, norm: compiled.Norm, info: ValidationInfo) -> compiled.Norm:
        eps = info.data.get("eps")
        if norm == "inf" and eps is not None and eps > 1:
            raise ValueError(
                f"eps is {eps:g} in the norm inf: at most 1 is allowed, pixels span [0, 1] (8 of 255 is 0.0314)"
            )
        if norm == 1 and eps is not None and eps > 1:
            raise ValueError(
                f"eps is {eps:g} in the norm 1: at most 1 is allowed, a step changes one channel of one pixel, and "
                "pixels span [0, 1]; for more use the norm 2"
            )
        return norm

    @field_validator("minimal")
    @classmethod
    def _minimal_is_ours(cls, minimal: bool, info: ValidationInfo) -> bool:
        if minimal and info.data.get("engine") == "art":
            raise ValueError(
                "minimal is true with the engine art: use the engine compiled, ART also moves images that are already "
                "misclassified and keeps the largest step where none succeeds"
            )
        return minimal

    @field_validator("eps_step")
    @classmethod
    def _levels_exist(cls, eps_step: float, info: ValidationInfo) -> float:
        eps = info.data.get("eps")
        if info.data.get("minimal") and eps is not None:
            if eps_step > eps:
                raise ValueError(
                    f"eps_step is {eps_step:g}, but eps is {eps:g}: with minimal at most eps is allowed, otherwise no "
                    "level is tried"
                )
            if eps / eps_step > MOST_LEVELS:
                raise ValueError(
                    f"eps_step is {eps_step:g}, but eps is {eps:g}: with minimal at least {eps / MOST_LEVELS:g} is "
                    f"allowed, {MOST_LEVELS} levels"
                )
        return eps_step

    def threat_model(self) -> ThreatModel:
        """White-box evasion within `eps` of the norm."""
        return ThreatModel(
            nist_class="evasion",
            knowledge="white-box",
            goal="targeted" if self.targeted else "untargeted",
            norm=str(self.norm),
            budget=f"L{self.norm} <= {self.eps:g}, pixels in [0, 1]",
        )

    def seeks(self) -> bool:
        """See the base class."""
        return self.minimal

    def check_classes(self, class_count: int) -> None:
        """See the base class; refuses a loss too that needs more classes."""
        super().check_classes(class_count)
        check_loss(self.loss, class_count, targeted=self.targeted)

    def levels(self) -> list[float]:
        """The sizes of step that `minimal` tries, ascending; multiplied, since sums of steps miss `eps` by rounding."""
        count = math.ceil(self.eps / self.eps_step - 1e-9)
        return [self.eps_step * k for k in range(1, count)] + [self.eps]

    def prepare(self, model: Any, *, seed: int, class_count: int) -> PerturbBatch:
        """See the base class. Nothing is drawn at random: `seed` changes nothing."""
        if self.engine == "art":
            return art_engine.prepare(model, class_count, self._art_attack)
        levels = tuple(self.levels()) if self.minimal else ()
        run = _compiled_fgm(model, class_count, self.norm, levels, loss=self.loss, targeted=self.targeted)

        def perturb(batch: AttackInput) -> Perturbed:
            eps = np.full(len(batch.images), self.eps, compiled.wide())
            results = run(batch.images, batch.goals, batch.labels, eps)
            return Perturbed(
                images=results["images"],
                queries=results["queries"].astype(np.int64),
                zero_gradient=results["zero_gradient"],
                finite=results["finite"],
                columns={"found": results["found"]} if self.minimal else {},
            )

        return perturb

    def _art_attack(self, classifier: Any) -> Any:
        from art.attacks.evasion import FastGradientMethod as ArtFastGradientMethod

        return ArtFastGradientMethod(
            classifier,
            norm=math.inf if self.norm == "inf" else self.norm,
            eps=float(self.eps),
            eps_step=float(self.eps_step),
            targeted=self.targeted,
            batch_size=self.batch_size,
        )


def _compiled_fgm(
    model: Any, class_count: int, norm: compiled.Norm, levels: tuple[float, ...], *, loss: Loss, targeted: bool
) -> Callable[..., dict[str, np.ndarray]]:
    """The attack as a function of arrays (images, goals, labels, eps), each row with its own eps.

    Compiled once for a model: the attacks of a sweep differ in eps alone.
    """
    key = "fgm", class_count, norm, levels, loss, targeted
    return made_of(model, key, lambda: _compile_fgm(model, class_count, norm, levels, loss=loss, targeted=targeted))


def _compile_fgm(
    model: Any, class_count: int, norm: compiled.Norm, levels: tuple[float, ...], *, loss: Loss, targeted: bool
) -> Callable[..., dict[str, np.ndarray]]:
    ops = compiled.keras_ops()

    def reached(logits: compiled.Tensor, goals: compiled.Tensor) -> compiled.Tensor:
        predicted = ops.cast(ops.argmax(logits, axis=1), "int32")
        return ops.equal(predicted, goals) if targeted else ops.not_equal(predicted, goals)

    def fgm(
        images: compiled.Tensor, goals: compiled.Tensor, labels: compiled.Tensor, eps: compiled.Tensor
    ) -> dict[str, compiled.Tensor]:
        climbed = loss_of(loss, goals, labels, class_count, targeted=targeted)
        slope, logits = compiled.loss_gradient(model, images, goals, class_count, climbed)
        direction = compiled.steepest(-slope if targeted else slope, norm)
        results = {
            "zero_gradient": compiled.all_of(ops.equal(slope, 0.0)),
            "finite": ops.logical_and(
                compiled.all_of(ops.isfinite(slope)),
                ops.all(ops.isfinite(logits), axis=1),
            ),
            "queries": ops.ones_like(goals),
        }
        if levels:
            there = reached(logits, goals)
            return results | smallest(images, goals, direction, there, results["queries"])
        return results | {"images": compiled.move(images, direction, eps, norm)}

    def smallest(
        images: compiled.Tensor,
        goals: compiled.Tensor,
        direction: compiled.Tensor,
        there: compiled.Tensor,
        queries: compiled.Tensor,
    ) -> dict[str, compiled.Tensor]:
        sizes = ops.convert_to_tensor(levels, dtype=compiled.wide())

        def unfinished(level: Any, adversarial: Any, found: Any, queries: Any) -> Any:
            return ops.logical_and(level < len(levels), ops.logical_not(ops.all(found)))

        def try_level(level: Any, adversarial: Any, found: Any, queries: Any) -> Any:
            candidates = compiled.move(images, direction, sizes[level], norm)
            hits = reached(compiled.logits_of(model, candidates), goals)
            new = ops.logical_and(hits, ops.logical_not(found))
            adversarial = ops.where(new[:, None, None, None], candidates, adversarial)
            queries = queries + ops.cast(ops.logical_not(found), queries.dtype)
            return level + 1, adversarial, ops.logical_or(found, new), queries

        start = (ops.convert_to_tensor(0, dtype="int32"), images, there, queries)
        _, adversarial, found, queries = ops.while_loop(unfinished, try_level, start)
        return {"images": adversarial, "found": found, "queries": queries}

    return compiled.compile_batches(fgm)
