"""What every evasion attack has: a typed config, a threat model, and the way it runs over an image set."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, model_validator

from dioptra_assets.robustness.attacks.compiled import compiled_margins
from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import ImageBatch, ImageSet
from dioptra_assets.robustness.memory import MOST_AT_ONCE, halved, out_of_memory, rows_that_fit

Knowledge = Literal["white-box", "black-box"]
Goal = Literal["untargeted", "targeted"]


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker is assumed to know, want and be allowed to change, in the terms of NIST AI 100-2.

    Attributes:
        nist_class: the class of attack.
        knowledge: `white-box` (weights and gradients) or `black-box` (queries only).
        goal: `untargeted` (any wrong class) or `targeted` (one class).
        norm: the norm that measures the budget: `inf`, `2`, `1` or `0`.
        budget: the budget in words and numbers, e.g. `Linf <= 0.3 of the pixel range [0, 1]`.
    """

    nist_class: Literal["evasion", "backdoor poisoning", "data reconstruction"]
    knowledge: Knowledge
    goal: Goal
    norm: str
    budget: str


@dataclass(frozen=True)
class AttackInput:
    """The rows of one batch, as an attack takes them.

    Attributes:
        images: float32 [rows, height, width, channels] in [0, 1].
        goals: int32 [rows]: the class to reach where the attack is targeted, else the true label, the class to leave.
        labels: int32 [rows]: the true labels.
        positions: int64 [rows]: where the images stand in the set. What is drawn at random for an image depends on the
            seed and on its position alone, so that the batch size changes nothing.
    """

    images: np.ndarray
    goals: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    def part(self, rows: slice | np.ndarray) -> "AttackInput":
        """Some of the rows."""
        return AttackInput(self.images[rows], self.goals[rows], self.labels[rows], self.positions[rows])


@dataclass(frozen=True)
class Perturbed:
    """What an attack made of one batch.

    Attributes:
        images: float32, shaped as the input.
        queries: int64 [rows]: evaluations of the model on this image; one with its gradient counts as one.
        zero_gradient: bool [rows]: the gradient that steers the attack was zero everywhere, so nothing could be learnt
            from it (a saturated model, or a masked gradient). Always False for an attack without gradients.
        finite: bool [rows]: all logits and gradients seen for this image were finite.
        columns: further columns for the index, [rows] each.
    """

    images: np.ndarray
    queries: np.ndarray
    zero_gradient: np.ndarray
    finite: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackedBatch:
    """One batch of an adversarial set.

    Attributes:
        images: float32 [rows, height, width, channels] in [0, 1].
        index: the rows of the attacked set's index, with `target_class` (Int64, <NA> where the image was given no
            target), `queries` (int64), `zero_gradient` (bool), and what the attack adds (see its docstring). An image
            that belongs to the target class already is not attacked: it has no zero gradient, and no queries but the
            one that tells `found`, where the index has that column.
    """

    images: np.ndarray
    index: pd.DataFrame


PerturbBatch = Callable[[AttackInput], Perturbed]


class Attack(BaseModel, ABC, frozen=True, extra="forbid"):
    """Config of an evasion attack. Closed: an unknown field is an error, and so is a value out of bounds.

    A subclass sets `method` to its own name and says how it perturbs a batch; everything else an adversarial set must
    hold to (every row once, the box, finite numbers, provenance) is seen to by :func:`perturb_set`.

    Attributes:
        one_step: of the class: it takes a single step up the gradient, so that a stronger attack is still to be tried.
    """

    one_step: ClassVar[bool] = False

    method: str
    engine: Literal["compiled", "art"] = Field(
        default="compiled", description="compiled: the whole attack in one compiled function; art: the reference."
    )
    batch_size: int = Field(
        default=256,
        ge=1,
        le=MOST_AT_ONCE,
        strict=True,
        description="Images attacked at once, at most; fewer where so many would not fit in memory. It changes no "
        "result.",
    )
    targeted: bool = Field(default=False, description="Drive images into one class instead of out of their own.")
    target_class: int | None = Field(
        default=None,
        ge=0,
        strict=True,
        description="With targeted: the class to reach (0-based). Left out: the class after the true one, the first "
        "after the last. Images that already belong to the target class are left as they are.",
    )
    seed: int | None = Field(
        default=None, ge=0, strict=True, description="Left out: derived from the experiment's seed and the cell."
    )

    @model_validator(mode="after")
    def _target_wants_targeted(self) -> "Attack":
        if self.target_class is not None and not self.targeted:
            raise ValueError(
                f"target_class is {self.target_class}, but targeted is false: set targeted to true, or remove "
                "target_class"
            )
        return self

    def seeks(self) -> bool:
        """Whether this attack looks for a success: its index then has the column `found`."""
        return False

    @abstractmethod
    def threat_model(self) -> ThreatModel:
        """The assumptions about the attacker under which this attack's numbers hold."""

    @abstractmethod
    def prepare(self, model: Any, *, seed: int, class_count: int) -> PerturbBatch:
        """Set the attack up against one model, once; the function returned then perturbs batch after batch.

        Args:
            model: a Keras model that maps float32 [rows, height, width, channels] in [0, 1] to logits
                [rows, class_count].
            seed: drives whatever is drawn at random.
            class_count: number of classes.
        """

    def check_classes(self, class_count: int) -> None:
        """Refuse a `target_class` that a model of `class_count` classes does not have.

        Raises:
            ValueError: naming the field, the value and what is allowed.
        """
        if self.target_class is not None and self.target_class >= class_count:
            raise ValueError(
                f"target_class is {self.target_class}, but there are {class_count} classes: allowed are 0 to "
                f"{class_count - 1}"
            )

    def targets(self, labels: np.ndarray, class_count: int) -> pd.Series:
        """The class each image is driven to: Int64 [rows], <NA> where it is given none."""
        if not self.targeted:
            return pd.Series(pd.NA, index=range(len(labels)), dtype="Int64")
        if self.target_class is None:
            return pd.Series((labels + 1) % class_count, dtype="Int64")
        targets = pd.Series(self.target_class, index=range(len(labels)), dtype="Int64")
        return targets.mask(pd.Series(labels == self.target_class))


def perturb_set(
    attack: Attack,
    model: Any,
    image_set: ImageSet,
    *,
    seed: int,
    class_count: int,
    progress: Callable[[int, int], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> Iterator[AttackedBatch]:
    """Attack every image of a set, a batch at a time: n in = n out, in the same order.

    Args:
        attack: what to do; its `batch_size` is the size of the batches, the last of which may be smaller, where so many
            images fit in memory at once (see `robustness/memory.py`); else it is halved.
        model: a Keras model that gives logits.
        image_set: the images to attack. Never written to.
        seed: the seed of the cell, used unless the attack names its own.
        class_count: number of classes of the model.
        progress: called after each batch with the images done and the images in all.
        log: told in a sentence where batches are smaller than `batch_size`.

    Raises:
        MemoryError: or the like, as the backend has it, where not even one image fits.
        NonFiniteError: where an image, the model's logits, their gradient or an adversarial image is not finite; set
            and image ids are named.
        ValueError: when the model ends in a softmax, or attack, model and set do not fit together.
    """
    attack.check_classes(class_count)
    _check_model(model, class_count)
    perturb = attack.prepare(model, seed=seed if attack.seed is None else attack.seed, class_count=class_count)
    if attack.target_class is not None:
        perturb = _sparing(attack, model, perturb, attack.target_class)
    rows = rows_that_fit(model, attack.batch_size, gradients=attack.threat_model().knowledge == "white-box", log=log)
    perturb = _halving(perturb, rows, log)
    return _perturb_batches(attack, perturb, image_set, rows=rows, class_count=class_count, progress=progress)


def _halving(perturb: PerturbBatch, rows: int, log: Callable[[str], None] | None) -> PerturbBatch:
    """Perturb a batch in parts of half the rows as soon as it does not fit in memory, and those after it too."""

    def perturb_parts(batch: AttackInput) -> Perturbed:
        nonlocal rows
        while True:
            firsts = range(0, len(batch.images), rows)
            try:
                return _joined([perturb(batch.part(slice(first, first + rows))) for first in firsts])
            except Exception as error:
                if not out_of_memory(error) or rows == 1:
                    raise
                rows = halved(rows)
                if log:
                    log(f"a batch did not fit in memory: {rows} images at once from here on")

    return perturb_parts


def _joined(parts: list[Perturbed]) -> Perturbed:
    if len(parts) == 1:
        return parts[0]
    return Perturbed(
        images=np.concatenate([part.images for part in parts]),
        queries=np.concatenate([part.queries for part in parts]),
        zero_gradient=np.concatenate([part.zero_gradient for part in parts]),
        finite=np.concatenate([part.finite for part in parts]),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
    )


def _sparing(attack: Attack, model: Any, perturb: PerturbBatch, target_class: int) -> PerturbBatch:
    """Leave alone the images that belong to the target class; of those say alone whether the model sees it too."""
    margins = compiled_margins(model, targeted=True) if attack.seeks() else None

    def perturb_others(batch: AttackInput) -> Perturbed:
        spared = batch.labels == target_class
        others = np.flatnonzero(~spared)
        if len(others) == len(spared):
            return perturb(batch)
        images, queries = batch.images.copy(), np.zeros(len(spared), np.int64)
        zero, finite = np.zeros(len(spared), bool), np.ones(len(spared), bool)
        columns: dict[str, np.ndarray] = {}
        if len(others):
            made = perturb(batch.part(others))
            images[others], queries[others] = made.images, made.queries
            zero[others], finite[others] = made.zero_gradient, made.finite
            for name, values in made.columns.items():
                columns[name] = np.zeros(len(spared), values.dtype)
                columns[name][others] = values
        if margins:
            asked = margins(batch.images[spared], batch.goals[spared])
            columns.setdefault("found", np.zeros(len(spared), bool))[spared] = asked["margin"] < 0
            queries[spared], finite[spared] = 1, asked["finite"]
        return Perturbed(images, queries, zero, finite, columns)

    return perturb_others


def _perturb_batches(
    attack: Attack,
    perturb: PerturbBatch,
    image_set: ImageSet,
    *,
    rows: int,
    class_count: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[AttackedBatch]:
    done = 0
    for batch in image_set.batches(rows):
        images = np.array(batch.images, np.float32)  # a copy: no engine can then write into the set
        _check_pixels(images, batch, image_set.name)
        targets = attack.targets(batch.labels, class_count)
        goals = targets.fillna(pd.Series(batch.labels)).to_numpy(np.int32)
        positions = np.arange(done, done + len(images))
        result = perturb(AttackInput(images, goals, batch.labels.astype(np.int32), positions))
        _refuse_non_finite(result.finite, batch, f"{image_set.name}: non-finite logits or gradient of the model")
        _refuse_non_finite(
            _finite_rows(result.images), batch, f"{image_set.name}: non-finite adversarial image of {attack.method}"
        )
        index = batch.index.assign(
            target_class=targets, queries=result.queries, zero_gradient=result.zero_gradient, **result.columns
        )
        yield AttackedBatch(result.images.astype(np.float32, copy=False), index)
        done += len(batch.index)
        if progress is not None:
            progress(done, len(image_set))


def _check_pixels(images: np.ndarray, batch: ImageBatch, name: str) -> None:
    _refuse_non_finite(_finite_rows(images), batch, f"{name}: non-finite pixels")
    if images.min() < 0 or images.max() > 1:
        raise ValueError(f"{name}: pixels reach from {images.min()} to {images.max()}, they must lie in [0, 1]")


def _finite_rows(images: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(images).all(axis=tuple(range(1, images.ndim))))


def _refuse_non_finite(finite: np.ndarray, batch: ImageBatch, what: str) -> None:
    if not finite.all():
        bad = batch.index["image_id"][~finite].tolist()
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise NonFiniteError(f"{what} at {len(bad)} images of one batch: {', '.join(bad[:5])}{more}")


def _check_model(model: Any, class_count: int) -> None:
    if tuple(model.output_shape) != (None, class_count):
        raise ValueError(
            f"model {model.name!r} gives outputs of shape {tuple(model.output_shape)}: expected logits of "
            f"{class_count} classes"
        )
    # A saturated softmax has no gradient in float32, and attacks then fail without a sound.
    last = model.layers[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if activation in {"softmax", "sigmoid"} or type(last).__name__ == "Softmax":
        raise ValueError(
            f"model {model.name!r} ends in {activation or 'softmax'}: attacks take logits, remove that activation"
        )
