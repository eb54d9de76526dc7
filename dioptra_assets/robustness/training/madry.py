"""Madry's adversarial training: a model learns from nothing but the images that attack it worst."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from dioptra_assets.robustness.attacks import compiled

if TYPE_CHECKING:
    import keras

# What the validation rows kept in memory for the attack may hold.
MOST_VALIDATION_ROWS = 1000
VALIDATION_BYTES = 128 << 20


class MadryTraining(BaseModel, frozen=True, extra="forbid"):
    """Training on PGD adversarial images (Madry et al. 2018, arXiv 1706.06083, section 2.1 and 3).

    Every batch of every epoch is replaced by adversarial images of the network as it stands: from a random point of the
    Linf ball around each image, `steps` times a step of `eps_step` along the sign of the gradient of the cross-entropy,
    kept in the ball and in [0, 1].

    While it is attacked the network is in inference mode, which is how an attacker meets it: no dropout, and batch
    normalisation with its moving statistics, which the attack leaves untouched. The step of the optimizer that follows
    is in training mode.
    """

    eps: float = Field(gt=0, le=1, description="Radius of the Linf ball; pixels span [0, 1]. On MNIST usually 0.3.")
    steps: int = Field(default=7, ge=1, le=1000, strict=True, description="Gradients an image and training step.")
    eps_step: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Size of one step. Left out: 2.5 eps / steps, which reaches any border of the ball from anywhere "
        "in it and leaves some for moving along the border.",
    )
    random_start: bool = Field(default=True, description="Start at a random point of the ball, not at the image.")

    @model_validator(mode="after")
    def _border_within_reach(self) -> "MadryTraining":
        if self.eps_step is not None and self.steps * self.eps_step < self.eps * (1 - 1e-9):
            raise ValueError(
                f"{self.steps} steps of eps_step {self.eps_step:g} reach {self.steps * self.eps_step:g}, less than eps "
                f"{self.eps:g}: allowed is an eps_step of at least {self.eps / self.steps:g}, or more steps"
            )
        return self

    @property
    def step_size(self) -> float:
        """Size of one step, as given or by default."""
        return 2.5 * self.eps / self.steps if self.eps_step is None else self.eps_step


def adversarial_images(
    config: MadryTraining, model: Any, images: compiled.Tensor, labels: compiled.Tensor, noise: compiled.Tensor | None
) -> compiled.Tensor:
    """The images that training sees in place of `images`. Takes and gives backend tensors; meant to be compiled.

    Args:
        config: the attack.
        model: gives logits.
        images: float32 [rows, height, width, channels] in [0, 1].
        labels: int [rows], the true classes.
        noise: where to start, shaped as the images: -1 to 1 across the ball. None starts at the images.
    """
    ops = compiled.keras_ops()
    lowest, highest = ops.maximum(images - config.eps, 0.0), ops.minimum(images + config.eps, 1.0)

    def within(moved: compiled.Tensor) -> compiled.Tensor:
        return ops.minimum(ops.maximum(moved, lowest), highest)

    def step(_: Any, moved: compiled.Tensor) -> compiled.Tensor:
        slope, _ = compiled.loss_gradient(model, moved, labels, model.output_shape[-1])
        return within(moved + config.step_size * ops.sign(slope))

    start = images if noise is None else within(images + config.eps * noise)
    return ops.fori_loop(0, config.steps, step, start)


@contextmanager
def adversarial_training(config: MadryTraining | None, model: "keras.Model", seed: int) -> Iterator[None]:
    """While this lasts, every training step of `model.fit` makes its batch adversarial first, in one compiled function.

    Only on TensorFlow. The loss and metrics that `fit` reports of training are then those of the adversarial images.

    Args:
        config: None changes nothing.
        model: a compiled model that gives logits and is trained on (images, class numbers).
        seed: of the random starts.
    """
    if config is None:
        yield
        return
    import keras

    ops, seeds = compiled.keras_ops(), keras.random.SeedGenerator(seed)

    def train_step(data: Any) -> Any:
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        images = ops.cast(images, "float32")
        noise = keras.random.uniform(ops.shape(images), -1.0, 1.0, seed=seeds) if config.random_start else None
        return type(model).train_step(model, (adversarial_images(config, model, images, labels, noise), labels))

    # On the object and only for a while: a model of a class of its own could not be read back without our code.
    untyped: Any = model
    untyped.train_step = train_step
    untyped.train_function = None
    try:
        yield
    finally:
        del untyped.train_step
        untyped.train_function = None


def robust_validation(
    config: MadryTraining, model: "keras.Model", images: np.ndarray, labels: np.ndarray, seed: int
) -> "keras.callbacks.Callback":
    """A Keras callback that adds `val_robust_loss` and `val_robust_accuracy` to every epoch.

    They are measured on the attack that training uses, from the same random starts each epoch. Put it before the
    callbacks that read them.

    Args:
        config: the attack.
        model: gives logits.
        images: float32 [n, height, width, channels] in [0, 1], n at least 1.
        labels: int [n].
        seed: of the random starts.
    """
    import keras

    ops = compiled.keras_ops()

    def measure(images: Any, labels: Any, noise: Any) -> dict[str, Any]:
        attacked = adversarial_images(config, model, images, labels, noise if config.random_start else None)
        logits = compiled.logits_of(model, attacked)
        return {
            "loss": keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True),
            "accuracy": ops.cast(ops.equal(ops.cast(ops.argmax(logits, axis=1), labels.dtype), labels), "float32"),
        }

    run = compiled.compile_batches(measure)
    noise = np.random.default_rng(seed).uniform(-1, 1, images.shape).astype(np.float32)

    class RobustValidation(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            if logs is None:
                return
            parts = [
                run(images[start : start + 256], labels[start : start + 256], noise[start : start + 256])
                for start in range(0, len(images), 256)
            ]
            for name in ("loss", "accuracy"):
                values = np.concatenate([part[name] for part in parts])
                logs[f"val_robust_{name}"] = float(values.mean(dtype=np.float64))

    return RobustValidation()


def validation_sample(rows: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """Of the validation rows, those that are attacked each epoch: evenly spread, at most 1,000 and 128 MB."""
    most = min(len(rows), MOST_VALIDATION_ROWS, max(1, VALIDATION_BYTES // (4 * math.prod(image_shape))))
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
