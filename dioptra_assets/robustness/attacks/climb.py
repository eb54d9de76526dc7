"""Climbing a loss within a ball, compiled: what projected gradient descent and its kin share.

Batches are climbed with all their steps at once, or some steps at a time with the images that fell left out.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from dioptra_assets.robustness.attacks import compiled
from dioptra_assets.robustness.attacks.base import AttackInput
from dioptra_assets.robustness.attacks.losses import Loss, loss_of
from dioptra_assets.robustness.attacks.search import GRAIN
from dioptra_assets.robustness.model_cache import made_of

BallNorm = Literal["inf", 2]

# With early stops, a batch is looked at so many times for images that fell: oftener costs more than it saves.
LOOKS = 20

# Takes arrays (images, goals, labels, starts, sizes); a row of sizes is (eps, eps_step, steps), of which all rows have
# the same steps. Gives `images`, `zero_gradient` and `finite`, and what `judged` and `stops` add.
Ascent = Callable[..., dict[str, np.ndarray]]


@dataclass(frozen=True)
class Climb:
    """What of an attack is compiled into the function that does it; sizes are its arguments, so a sweep compiles once.

    Attributes:
        class_count: number of classes.
        norm: of the ball.
        loss: what is climbed.
        targeted: lower the loss towards the goal instead of raising it.
        judged: give each image's `success` and `gain` (the loss, negated where targeted) too, at one more query.
        stops: leave each image at the first iterate that is classified as wanted; give `fallen`, and `queries` asked.
    """

    class_count: int
    norm: BallNorm
    _: KW_ONLY
    loss: Loss
    targeted: bool
    judged: bool
    stops: bool

    def of(self, model: Any) -> Ascent:
        """The function for a model that gives logits, compiled once for a model."""
        return made_of(model, self, lambda: compiled.compile_batches(self._pgd(model)))

    def _pgd(self, model: Any) -> Callable[..., dict[str, compiled.Tensor]]:
        ops = compiled.keras_ops()

        def pgd(images: Any, goals: Any, labels: Any, starts: Any, sizes: Any) -> dict[str, compiled.Tensor]:
            steps = ops.cast(sizes[0, 2], "int32")
            loss = loss_of(self.loss, goals, labels, self.class_count, targeted=self.targeted)
            margin = loss_of("margin", goals, labels, self.class_count, targeted=self.targeted)

            def unfinished(step: Any, state: dict[str, Any]) -> Any:
                more = step < steps
                return ops.logical_and(more, ops.logical_not(ops.all(state["fallen"]))) if self.stops else more

            def one_step(step: Any, state: dict[str, Any]) -> Any:
                current = state["images"]
                slope, logits = compiled.loss_gradient(model, current, goals, self.class_count, loss)
                direction = compiled.steepest(-slope if self.targeted else slope, self.norm)
                moved = compiled.move_on(current, images, direction, step=sizes[:, 1], eps=sizes[:, 0], norm=self.norm)
                finite = ops.logical_and(compiled.all_of(ops.isfinite(slope)), ops.all(ops.isfinite(logits), axis=1))
                zero = compiled.all_of(ops.equal(slope, 0.0))
                if not self.stops:
                    return step + 1, {
                        "images": moved,
                        "zero_gradient": ops.logical_and(state["zero_gradient"], zero),
                        "finite": ops.logical_and(state["finite"], finite),
                    }
                before = state["fallen"]
                beyond = margin(logits)
                # By more than a forward pass over a batch of another size may round otherwise.
                fallen = ops.logical_or(before, beyond < -GRAIN if self.targeted else beyond > GRAIN)
                return step + 1, {
                    "images": ops.where(fallen[:, None, None, None], current, moved),
                    "zero_gradient": ops.logical_and(state["zero_gradient"], ops.logical_or(before, zero)),
                    "finite": ops.logical_and(state["finite"], ops.logical_or(before, finite)),
                    "fallen": fallen,
                    "queries": state["queries"] + ops.cast(ops.logical_not(before), "int32"),
                }

            true = ops.ones_like(goals, dtype="bool")
            begin = {"images": starts, "zero_gradient": true, "finite": true}
            if self.stops:
                begin |= {"fallen": ops.logical_not(true), "queries": ops.zeros_like(goals)}
            _, state = ops.while_loop(unfinished, one_step, (ops.convert_to_tensor(0, dtype="int32"), begin))
            return state | self._judge(model, state, goals, loss) if self.judged else state

        return pgd

    def _judge(self, model: Any, state: dict[str, Any], goals: Any, loss: Callable[[Any], Any]) -> dict[str, Any]:
        ops = compiled.keras_ops()
        logits = compiled.logits_of(model, state["images"])
        at_goal = ops.equal(ops.cast(ops.argmax(logits, axis=1), "int32"), goals)
        gain = loss(logits)
        return {
            "success": at_goal if self.targeted else ops.logical_not(at_goal),
            "gain": -gain if self.targeted else gain,
            "finite": ops.logical_and(state["finite"], ops.all(ops.isfinite(logits), axis=1)),
        }


def climb_all(
    run: Ascent, batch: AttackInput, starts: np.ndarray, size: tuple[float, float, int]
) -> dict[str, np.ndarray]:
    """All steps for all images, with `queries` (int64 [rows]) added.

    Args:
        run: the compiled climb.
        batch: the images.
        starts: float32, shaped as the images: where the first step starts.
        size: eps, eps_step and steps.
    """
    result = run(batch.images, batch.goals, batch.labels, starts, _sizes(len(starts), size))
    return result | {"queries": np.full(len(starts), size[2] + ("gain" in result), np.int64)}


def climb_and_stop(
    run: Ascent, batch: AttackInput, starts: np.ndarray, size: tuple[float, float, int], judge: Ascent | None
) -> dict[str, np.ndarray]:
    """As :func:`climb_all`, but images that fell are left as they fell, and those that stand are climbed without them.

    Args:
        run: the compiled climb, one that stops.
        batch: the images.
        starts: float32, shaped as the images: where the first step starts.
        size: eps, eps_step and steps.
        judge: a compiled climb that judges; asked, without a step, how those ended that stand. None: nobody asks.
    """
    eps, eps_step, steps = size
    best: dict[str, np.ndarray] = {}
    going, done, at_once = np.arange(len(starts)), 0, -(-steps // LOOKS)
    while done < steps and len(going):
        now = min(at_once, steps - done)
        part = batch.part(going)
        current = best["images"][going] if best else starts
        new = run(part.images, part.goals, part.labels, current, _sizes(len(going), (eps, eps_step, now)))
        new["queries"] = new["queries"].astype(np.int64)
        if best:
            new["queries"] += best["queries"][going]
            new["zero_gradient"] = new["zero_gradient"] & best["zero_gradient"][going]
            for name, values in new.items():
                best[name][going] = values
        else:
            best = {name: values.copy() for name, values in new.items()}
        going = np.flatnonzero(~best["fallen"] & best["finite"])
        done += now
    return best | _judged(judge, batch, best) if judge else best


def _judged(judge: Ascent, batch: AttackInput, ended: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`success` and `gain` of images that were climbed with stops; those that fell were judged as they did."""
    success, finite, queries = ended["fallen"].copy(), ended["finite"].copy(), ended["queries"].copy()
    gain = np.full(len(success), np.inf, np.float32)
    standing = np.flatnonzero(~success)
    if len(standing):
        part = batch.part(standing)
        sizes = _sizes(len(standing), (0.0, 0.0, 0))
        result = judge(part.images, part.goals, part.labels, ended["images"][standing], sizes)
        success[standing], gain[standing] = result["success"], result["gain"]
        finite[standing] &= result["finite"]
        queries[standing] += 1
    return {"success": success, "gain": gain, "finite": finite, "queries": queries}


def _sizes(rows: int, size: tuple[float, float, int]) -> np.ndarray:
    return np.full((rows, 3), size, compiled.wide())
