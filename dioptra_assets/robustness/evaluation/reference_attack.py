"""The same attack with a loss that the scale of the logits cannot hide: what an attack of one config ought to reach.

Cross-entropy of a confident model is lost in float32: of a probability of 1 - 1e-8 only the 1 is left, and with it goes
the part of the gradient that leads away from the true class. The direction that is left is another, or none, and the
attack is weak though no gradient is zero. Two losses have no such term, since neither takes the softmax of the true
class:

- `exact`: log-sum-exp of the other logits less the true one. Its gradient is that of the cross-entropy times a positive
  number, so that in exact arithmetic signs and directions, and with them the whole attack, are the same.
- `margin`: the largest other logit less the true one. It does not depend on the scale of the logits at all.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd

from dioptra_assets.robustness.attacks import (
    Attack,
    BasicIterativeMethod,
    FastGradientMethod,
    ProjectedGradientDescent,
    compiled,
)
from dioptra_assets.robustness.evaluation.predictions import logits_of
from dioptra_assets.robustness.image_set import ImageSet

Loss = Literal["exact", "margin"]
LOSSES: tuple[Loss, ...] = ("exact", "margin")
ANOTHER_LOSS = 0.05
BATCH = 256
# A step of every image costs a gradient; from more of them than this an image is left out, down to so many images.
MOST_STEPS, MOST_IMAGES, FEWEST_IMAGES = 10_000, 500, 100


def has_reference(attack: Attack) -> bool:
    """Whether an attack climbs the cross-entropy, so that it can be held against the same with another loss."""
    return isinstance(attack, FastGradientMethod | BasicIterativeMethod | ProjectedGradientDescent)


def allowed_gap(attack: Attack, loss: Loss) -> float:
    """By how much the lower end of the interval of (attack less reference) may stay above 0.

    With the cross-entropy the exact loss takes the very steps of the attack, so that any gap is one of float32. Another
    loss may be a little better, and says nothing against the attack by that.
    """
    return 0.0 if loss == "exact" and getattr(attack, "loss", "cross_entropy") == "cross_entropy" else ANOTHER_LOSS


def looked_at(attack: Attack, n: int) -> np.ndarray:
    """The rows of a set of n images that a reference is computed for, spread evenly over it: int64, rising."""
    count = min(n, MOST_IMAGES, max(FEWEST_IMAGES, MOST_STEPS // _steps(attack)))
    return np.unique(np.linspace(0, n - 1, count).round().astype(np.int64))


class ReferenceAttacks:
    """The reference attacks on one model; what is compiled for one config serves those that differ in size alone.

    Args:
        model: gives logits.
        images: the untouched set.
        seed: of the random starts.
    """

    def __init__(self, model: Any, images: ImageSet, *, seed: int):
        self._model, self._images, self._seed = model, images, seed
        self._steps: dict[tuple[Any, ...], Callable[..., dict[str, np.ndarray]]] = {}

    def right(self, attack: Attack) -> pd.DataFrame:
        """Whether the model is still right about some images under the attack of a config, with another loss.

        Args:
            attack: one that :func:`has_reference`.

        Returns:
            One row an image: `image_id`, and for each of `LOSSES` whether it is still classified right, bool.
        """
        rows = looked_at(attack, len(self._images))
        pixels, labels = self._images.images(rows), self._images.labels[rows]
        targets = attack.targets(labels, len(self._images.class_names))
        goals = targets.fillna(pd.Series(labels)).to_numpy(np.int32)
        spared = targets.isna().to_numpy(bool) & attack.targeted
        right: dict[str, Any] = {"image_id": self._images.index["image_id"].to_numpy()[rows]}
        for loss in LOSSES:
            moved = _attacked(attack, self._step(attack, loss), pixels, goals, self._seed)
            moved = np.where(spared[:, None, None, None], pixels, moved)
            parts = [moved[start : start + BATCH] for start in range(0, len(rows), BATCH)]
            right[loss] = np.concatenate([logits_of(self._model, part).argmax(axis=1) for part in parts]) == labels
        return pd.DataFrame(right)

    def _step(self, attack: Attack, loss: Loss) -> Callable[..., dict[str, np.ndarray]]:
        key = (loss, _norm(attack), attack.targeted)
        if key not in self._steps:
            self._steps[key] = _step(self._model, *key)
        return self._steps[key]


def _norm(attack: Attack) -> compiled.Norm:
    return getattr(attack, "norm", "inf")


def _steps(attack: Attack) -> int:
    return int(getattr(attack, "steps", 1))


def _attacked(attack: Any, step: Callable[..., Any], pixels: np.ndarray, goals: np.ndarray, seed: int) -> np.ndarray:
    moved = pixels
    if getattr(attack, "random_starts", 0):
        drawn = np.random.default_rng(seed).uniform(-1, 1, pixels.shape)
        if _norm(attack) == 2:
            drawn /= np.sqrt((drawn**2).sum(axis=(1, 2, 3), keepdims=True))
        moved = np.clip(pixels + attack.eps * drawn, 0, 1).astype(np.float32)
    size = getattr(attack, "step_size", attack.eps)
    parts = []
    for start in range(0, len(pixels), BATCH):
        rows = slice(start, start + BATCH)
        part, sizes = moved[rows], np.full((len(pixels[rows]), 2), (size, attack.eps), compiled.wide())
        for _ in range(_steps(attack)):
            part = step(part, pixels[rows], goals[rows], sizes)["images"]
        parts.append(part)
    return np.concatenate(parts)


def _step(model: Any, loss: Loss, norm: compiled.Norm, targeted: bool) -> Callable[..., dict[str, np.ndarray]]:
    """One step of the attack as a function of arrays (current, images, goals, (step, eps))."""
    ops = compiled.keras_ops()

    def one(current: Any, images: Any, goals: Any, sizes: Any) -> dict[str, Any]:
        def rise(x: Any) -> tuple[Any, Any]:
            logits = compiled.logits_of(model, x)
            goal = ops.one_hot(goals, logits.shape[1], dtype="bool")
            others = ops.where(goal, -math.inf, logits)
            other = ops.logsumexp(others, axis=1) if loss == "exact" else ops.max(others, axis=1)
            return ops.sum(other - ops.sum(ops.where(goal, logits, 0.0), axis=1)), logits

        slope, _ = compiled.gradient(rise, current)
        direction = compiled.steepest(-slope if targeted else slope, norm)
        return {"images": compiled.move_on(current, images, direction, step=sizes[:, 0], eps=sizes[:, 1], norm=norm)}

    return compiled.compile_batches(one)
