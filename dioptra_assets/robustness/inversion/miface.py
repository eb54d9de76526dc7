"""Model inversion: pictures of the classes, reconstructed from a model alone.

>>> parse_inversion({"method": "miface"}).threshold
0.99
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, field_validator

from dioptra_assets.robustness.attacks import compiled
from dioptra_assets.robustness.attacks.base import ThreatModel
from dioptra_assets.robustness.attacks.base import _check_model as check_model
from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.memory import MOST_AT_ONCE, rows_that_fit
from dioptra_assets.robustness.model_cache import made_of

STOP_REASONS = ("max_iter", "threshold", "window")

# Of the index of an inverted set, beyond image_id and label.
INVERTED_COLUMNS: dict[str, str] = {
    "confidence": "softmax probability the inverted model gives the class, 0 to 1",
    "iterations": "steps of gradient descent computed",
    "stop_reason": "threshold: confident enough; window: no better for window_length steps; max_iter: neither",
    "zero_gradient": "every gradient was zero: the image is still where it started",
}


class ModelInversion(BaseModel, frozen=True, extra="forbid"):
    """MI-Face (Fredrikson et al. 2015, CCS, section 5.1, algorithm 1): the picture a model takes for a class.

    Gradient descent on the cost 1 - confidence of one class, clipped to [0, 1] after each step; the best candidate is
    returned. As in the paper's text it stops when the cost has not improved in `window_length` steps, or the confidence
    has reached `threshold`. The model's knowledge is all it needs, but for `start: mean`.

    The step is `learning_rate` times the gradient of the logarithm of the confidence: the direction of the paper's
    gradient exactly, its length divided by the confidence. The paper's own step is as short as the confidence is small,
    and where a model is sure that the start is another class (confidence 1e-9) it does not move in float32; near the
    goal both are the same.
    """

    method: Literal["miface"] = "miface"
    max_iter: int = Field(default=10_000, ge=1, le=1_000_000, strict=True, description="Most steps, at least 1.")
    window_length: int = Field(
        default=100, ge=1, strict=True, description="Stop when the cost has not improved in so many steps."
    )
    threshold: float = Field(default=0.99, gt=0, lt=1, description="Stop when the confidence has reached this.")
    learning_rate: float = Field(
        default=0.1, gt=0, le=1000, description="Step in pixel values a unit of gradient of the log confidence."
    )
    start: Literal["noise", "mean", "grey"] = Field(
        default="noise",
        description="Where the descent begins: noise (uniform, seeded), mean (the mean training image, so the attacker "
        "knows something of the data) or grey (0.5). A black image is not offered: many models have no gradient there.",
    )
    classes: tuple[int, ...] | None = Field(
        default=None, description="The classes to invert (0-based); one number for one class. Left out: all."
    )
    batch_size: int = Field(
        default=128, ge=1, le=MOST_AT_ONCE, strict=True, description="Classes inverted at once, at least 1."
    )
    seed: int | None = Field(
        default=None, ge=0, strict=True, description="Left out: derived from the experiment's seed and the cell."
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _one_class_or_several(cls, classes: object) -> object:
        return (classes,) if isinstance(classes, int) and not isinstance(classes, bool) else classes

    @field_validator("classes")
    @classmethod
    def _each_class_once(cls, classes: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if classes is not None and (not classes or min(classes) < 0 or len(set(classes)) < len(classes)):
            raise ValueError(f"classes is {list(classes)}: it must name at least one class, from 0 up and each once")
        return classes

    def threat_model(self) -> ThreatModel:
        """An attacker who has the model, and of the data at most their mean."""
        return ThreatModel(
            nist_class="data reconstruction",
            knowledge="white-box",
            goal="targeted",
            norm="none",
            budget=f"at most {self.max_iter:,} gradients a class, started from {self.start}",
        )

    def check_classes(self, class_count: int) -> None:
        """Refuse classes that a model of `class_count` classes does not have.

        Raises:
            ValueError: naming the field, the value and what is allowed.
        """
        if self.classes is not None and max(self.classes) >= class_count:
            raise ValueError(
                f"classes holds {max(self.classes)}, but there are {class_count} classes: allowed are 0 to "
                f"{class_count - 1}"
            )


INVERSIONS: dict[str, type[ModelInversion]] = {"miface": ModelInversion}


def parse_inversion(entry: Mapping[str, Any]) -> ModelInversion:
    """The inversion config of one entry, which names its `method`.

    Raises:
        ValueError: for an unknown method, naming those that exist, or (pydantic.ValidationError) for a wrong field.
    """
    method = entry.get("method")
    if method not in INVERSIONS:
        raise ValueError(f"method is {method!r}: allowed are {', '.join(INVERSIONS)}")
    return INVERSIONS[method].model_validate(dict(entry))


@dataclass(frozen=True)
class TrainingFacts:
    """What model inversion knows of the training data.

    Attributes:
        image_shape: (height, width, channels).
        class_names: the classes, in the order of the logits.
        mean: the mean training image [height, width, channels], needed for `start: mean`.
    """

    image_shape: tuple[int, int, int]
    class_names: Sequence[str]
    mean: np.ndarray | None = None


def invert(
    config: ModelInversion,
    model: Any,
    known: TrainingFacts,
    *,
    seed: int,
    name: str = "inverted set",
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Reconstruct one image per class.

    Args:
        config: the attack.
        model: a Keras model that maps float32 [rows, height, width, channels] in [0, 1] to logits.
        known: shape and classes of the training data.
        seed: seed of the noise, unless the config has its own. The noise of a class does not depend on which other
            classes are inverted.
        name: name of the set in error messages.
        progress: called after each batch with the number of classes done and of all classes.

    Returns:
        A set in memory, one image per class in the order of `config.classes`. Its index has the class number as
        `image_id` (six digits) and `label`, and the columns of `INVERTED_COLUMNS`.

    Raises:
        NonFiniteError: logits or gradients of the model are NaN or infinite. The message names the classes.
        ValueError: the model ends in a softmax, config, model and classes do not match, or `start` is mean and there is
            no mean image of the right shape.
    """
    image_shape, class_names = known.image_shape, known.class_names
    config.check_classes(len(class_names))
    check_model(model, len(class_names))
    labels = np.array(range(len(class_names)) if config.classes is None else config.classes, np.int32)
    start_of = _starts(config, image_shape, config.seed if config.seed is not None else seed, known.mean)
    run = made_of(model, "miface", lambda: _compiled_miface(model, len(class_names)))
    images = np.empty((len(labels), *image_shape), np.float32)
    rows: list[pd.DataFrame] = []
    at_once = rows_that_fit(model, config.batch_size)
    for first in range(0, len(labels), at_once):
        batch = labels[first : first + at_once]
        result = run(
            np.stack([start_of(label) for label in batch.tolist()]),
            batch,
            np.tile(np.array([config.learning_rate, math.log(config.threshold)], np.float32), (len(batch), 1)),
            np.tile(np.array([config.max_iter, config.window_length], np.int32), (len(batch), 1)),
        )
        if not result["finite"].all():
            bad = ", ".join(str(class_names[label]) for label in batch[~result["finite"]].tolist()[:5])
            raise NonFiniteError(f"{name}: non-finite logits or gradient of the model while inverting: {bad}")
        images[first : first + len(batch)] = result["images"]
        rows.append(
            pd.DataFrame(
                {
                    "image_id": [f"{label:06d}" for label in batch],
                    "label": batch.astype(np.int64),
                    "confidence": np.exp(result["log_confidence"]),
                    "iterations": result["iterations"].astype(np.int64),
                    "stop_reason": np.array(STOP_REASONS)[result["stop_reason"]],
                    "zero_gradient": result["zero_gradient"],
                }
            )
        )
        if progress is not None:
            progress(first + len(batch), len(labels))
    return ImageSet(images, pd.concat(rows, ignore_index=True), tuple(class_names), name)


def _starts(
    config: ModelInversion, image_shape: tuple[int, int, int], seed: int, training_mean: np.ndarray | None
) -> Callable[[int], np.ndarray]:
    """A function from a class to the image that its descent starts from."""
    if config.start == "noise":
        return lambda label: np.random.default_rng([seed, label]).random(image_shape, np.float32)
    if config.start == "grey":
        return lambda label: np.full(image_shape, 0.5, np.float32)
    if training_mean is None or training_mean.shape != image_shape:
        given = "none was given" if training_mean is None else f"one of shape {training_mean.shape} was given"
        raise ValueError(f"start is mean: it needs the mean training image of shape {image_shape}, but {given}")
    mean = np.clip(training_mean, 0.0, 1.0).astype(np.float32)
    return lambda label: mean


def _compiled_miface(model: Any, class_count: int) -> Callable[..., dict[str, np.ndarray]]:
    """The descent as a function of arrays with a row for each class.

    It takes start images; classes; learning rate and logarithm of the threshold; max_iter and window_length. All of a
    config is data, so that a sweep over one model compiles once.
    """
    ops = compiled.keras_ops()

    def unfinished(step: Any, state: dict[str, Any]) -> Any:
        return ops.any(state["active"])

    def miface(start: Any, classes: Any, rates: Any, limits: Any) -> dict[str, Any]:
        own = ops.one_hot(classes, class_count, dtype="float32")
        rate, goal, max_iter, window = rates[:, :1, None, None], rates[:, 1], limits[:, 0], limits[:, 1]

        def descend(step: Any, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            """Look at the candidate of each class, keep it where it is the best so far, and move on or stop."""
            slope, logits = compiled.loss_gradient(model, state["candidates"], classes, class_count)
            # In the order of the cost 1 - confidence, and still telling candidates apart where the cost rounds to 1.
            log_confidence = ops.sum(own * ops.log_softmax(logits, axis=1), axis=1)
            active = state["active"]
            better = ops.logical_and(active, log_confidence > state["log_confidence"])
            images = ops.where(better[:, None, None, None], state["candidates"], state["images"])
            best = ops.where(better, log_confidence, state["log_confidence"])
            best_step = ops.where(better, step, state["best_step"])
            there, stale = best >= goal, step - best_step >= window
            finite = ops.logical_and(compiled.all_of(ops.isfinite(slope)), ops.all(ops.isfinite(logits), axis=1))
            ends = ops.logical_or(ops.logical_or(there, stale), ops.logical_or(step >= max_iter, ~finite))
            now = ops.logical_and(active, ends)
            reason = ops.where(there, 1, ops.where(stale, 2, 0))
            going = ops.logical_and(active, ~now)
            zero = ops.logical_or(~active, compiled.all_of(ops.equal(slope, 0.0)))
            moved = ops.clip(state["candidates"] - rate * slope, 0.0, 1.0)
            return step + 1, {
                "candidates": ops.where(going[:, None, None, None], moved, state["candidates"]),
                "images": images,
                "log_confidence": best,
                "best_step": best_step,
                "iterations": ops.where(now, step, state["iterations"]),
                "stop_reason": ops.where(now, reason, state["stop_reason"]),
                "zero_gradient": ops.logical_and(state["zero_gradient"], zero),
                "finite": ops.logical_and(state["finite"], ops.logical_or(~active, finite)),
                "active": going,
            }

        zeros = ops.zeros_like(classes)
        yes = ops.equal(classes, classes)
        state = {
            "candidates": start,
            "images": start,
            "log_confidence": ops.full_like(goal, -math.inf),
            "best_step": zeros,
            "iterations": zeros,
            "stop_reason": zeros,
            "zero_gradient": yes,
            "finite": yes,
            "active": yes,
        }
        _, state = ops.while_loop(unfinished, descend, (ops.convert_to_tensor(0, dtype="int32"), state))
        kept = ("images", "log_confidence", "iterations", "stop_reason", "zero_gradient", "finite")
        return {key: state[key] for key in kept}

    return compiled.compile_batches(miface)
