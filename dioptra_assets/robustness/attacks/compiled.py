"""The engine `compiled`: an attack as one compiled function, written once in `keras.ops`.

Two things differ between the backends of Keras, and :func:`gradient` and :func:`compile_batches` are all that knows it:
how a gradient is taken, and how a function is compiled. Functions here take and give backend tensors.

Why: docs/decisions/0018-keras-on-jax.md
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from dioptra_assets.robustness.model_cache import made_of

Norm = Literal["inf", 1, 2]
Tensor = Any  # tf.Tensor or jax.Array, as the backend of Keras has it


def gradient(function: Callable[[Tensor], tuple[Tensor, Any]], x: Tensor) -> tuple[Tensor, Any]:
    """The gradient at `x` of the first (scalar) result of `function`, and its second result.

    Raises:
        RuntimeError: on a Keras backend other than TensorFlow and JAX.
    """
    if _backend() == "jax":
        import jax  # pyright: ignore[reportMissingImports]

        return jax.grad(function, has_aux=True)(x)
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        value, other = function(x)
    return tape.gradient(value, x), other


def compile_batches(
    function: Callable[..., dict[str, Tensor]],
) -> Callable[..., dict[str, np.ndarray]]:
    """Compile a function of arrays that share their first axis, the rows of a batch, and that gives such arrays.

    TensorFlow compiles it once, for any number of rows. JAX cannot, so there every batch is filled up to the next power
    of two with copies of its last row, cut off again after: few sizes are compiled, and a batch gives the same bytes
    whatever sizes came before it.

    Raises:
        RuntimeError: on a Keras backend other than TensorFlow and JAX.
    """
    return _compile_jax(function) if _backend() == "jax" else _compile_tensorflow(function)


def keras_ops() -> Any:
    """`keras.ops` without its type hints, which promise None for a backend that is not used here."""
    from keras import ops

    return ops


def _backend() -> str:
    import keras

    name = keras.backend.backend()
    if name not in {"tensorflow", "jax"}:
        raise RuntimeError(
            f"Keras runs on the backend {name!r}: attacks run on tensorflow or jax, set KERAS_BACKEND to one of them"
        )
    return name


def _compile_tensorflow(function: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, np.ndarray]]:
    import tensorflow as tf

    # Without XLA: on a CPU its convolutions are slower than oneDNN's, and round otherwise than the eager reference.
    compiled: Any = None

    def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal compiled
        if compiled is None:
            any_rows = [tf.TensorSpec((None, *array.shape[1:]), tf.as_dtype(array.dtype)) for array in arrays]
            # The traced function itself: called through tf.function, the fifth model that is attacked draws a warning.
            compiled = tf.function(function, input_signature=any_rows, autograph=False).get_concrete_function()
        results = compiled(*(tf.convert_to_tensor(array) for array in arrays))
        return {name: result.numpy() for name, result in results.items()}

    return run


def _compile_jax(function: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, np.ndarray]]:
    import jax  # pyright: ignore[reportMissingImports]

    compiled = jax.jit(function)

    def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        rows = len(arrays[0])
        missing = (1 << (rows - 1).bit_length()) - rows
        filled = (
            [np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in arrays] if missing else arrays
        )
        return {name: np.asarray(result)[:rows] for name, result in compiled(*filled).items()}

    return run


def logits_of(model: Any, images: Tensor) -> Tensor:
    """The logits of `images`, float32 [rows, classes], also of a model that computes in half precision."""
    return keras_ops().cast(model(images, training=False), "float32")


def loss_gradient(
    model: Any,
    images: Tensor,
    classes: Tensor,
    class_count: int,
    loss: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of each image's loss, and the logits.

    The losses are summed, not averaged, so that an image's gradient does not depend on the size of its batch.

    Args:
        model: gives logits.
        images: float32 [rows, height, width, channels].
        classes: int32 [rows].
        class_count: number of classes.
        loss: from logits to the loss of each image, [rows]. Left out: the cross-entropy towards `classes`.

    Returns:
        [rows, height, width, channels] and [rows, class_count].
    """
    ops = keras_ops()

    goal = ops.one_hot(classes, class_count, dtype="float32")

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(model, x)
        losses = loss(logits) if loss else ops.categorical_crossentropy(goal, logits, from_logits=True)
        return ops.sum(losses), logits

    return gradient(total, images)


def compiled_margins(model: Any, targeted: bool) -> Callable[..., dict[str, np.ndarray]]:
    """By how much, in logits, images miss the goal: a function of images and classes, compiled once for a model.

    It gives `margin` (float32 [rows]: the logit of the class to leave less the largest other, or with `targeted` the
    largest other less that of the class to reach; negative where the image is classified as wanted) and `finite` (bool
    [rows]: all logits were finite).
    """
    return made_of(model, ("margins", targeted), lambda: _compile_margins(model, targeted))


def _compile_margins(model: Any, targeted: bool) -> Callable[..., dict[str, np.ndarray]]:
    ops = keras_ops()

    def margins(images: Tensor, goals: Tensor) -> dict[str, Tensor]:
        logits = logits_of(model, images)
        goal = ops.one_hot(goals, logits.shape[1], dtype="bool")
        margin = ops.max(ops.where(goal, logits, -math.inf), axis=1) - ops.max(
            ops.where(goal, -math.inf, logits), axis=1
        )
        return {"margin": -margin if targeted else margin, "finite": ops.all(ops.isfinite(logits), axis=1)}

    return compile_batches(margins)


def steepest(slope: Tensor, norm: Norm) -> Tensor:
    """The direction of norm 1 along which `slope` rises most, image by image; zero where the slope is zero.

    Linf: the sign of every pixel. L1: the one channel of one pixel where the slope is steepest (the first of equals).
    L2: the slope, scaled.

    Returns:
        [rows, height, width, channels], in :func:`wide` precision.
    """
    ops = keras_ops()
    slope = ops.cast(slope, wide())
    if norm == "inf":
        return ops.sign(slope)
    flat = ops.reshape(slope, (-1, math.prod(slope.shape[1:])))
    if norm == 1:
        steepest_pixel = ops.argmax(ops.abs(flat), axis=1)
        direction = ops.one_hot(steepest_pixel, flat.shape[1], dtype=wide()) * ops.sign(flat)
    else:
        # A confident model's gradients are so small that their squares vanish, so the largest is brought to 1 first.
        scaled = _divide(flat, ops.max(ops.abs(flat), axis=1, keepdims=True))
        direction = _divide(scaled, _length(scaled))
    return ops.reshape(direction, ops.shape(slope))


def move(images: Tensor, direction: Tensor, eps: Tensor | float, norm: Norm) -> Tensor:
    """`images` moved by `eps` along `direction` (of norm 1), kept in the box [0, 1] and in the ball of `eps`.

    `eps` is one number for all images, or one for each, [rows].
    """
    return move_on(images, images, direction, step=eps, eps=eps, norm=norm)


def move_on(
    current: Tensor, images: Tensor, direction: Tensor, *, step: Tensor | float, eps: Tensor | float, norm: Norm
) -> Tensor:
    """`current` moved by `step` along `direction` (of norm 1), kept in the box [0, 1] and within `eps` of `images`.

    `step` and `eps` are one number for all images, or one for each, [rows]. In L1 `current` must be `images`.
    """
    ops = keras_ops()
    step, eps = (ops.reshape(ops.cast(size, wide()), (-1, 1, 1, 1)) for size in (step, eps))
    moved = ops.clip(ops.cast(current, wide()) + step * direction, 0.0, 1.0)
    change = ops.cast(ops.cast(moved, "float32") - images, wide())  # after rounding, as the budget is measured
    if norm == 2:
        flat = ops.reshape(change, (-1, math.prod(change.shape[1:])))
        change = ops.reshape(
            flat * ops.minimum(1.0, _divide(ops.reshape(eps, (-1, 1)), _length(flat))), ops.shape(change)
        )
    else:  # a single step in L1 changes one entry
        change = ops.clip(change, -eps, eps)
    return ops.clip(images + ops.cast(change, "float32"), 0.0, 1.0)


def wide() -> str:
    """The dtype of an attack's own arithmetic: double where the backend has it, so that its rounding does not show."""
    return "float32" if _backend() == "jax" else "float64"


def all_of(rows: Tensor) -> Tensor:
    """Whether all entries of a row are true, bool [rows]."""
    ops = keras_ops()

    return ops.all(ops.reshape(rows, (-1, math.prod(rows.shape[1:]))), axis=1)


def _length(flat: Tensor) -> Tensor:
    ops = keras_ops()

    return ops.sqrt(ops.sum(flat * flat, axis=1, keepdims=True))


def _divide(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """Zero where the denominator is zero."""
    ops = keras_ops()

    return ops.where(denominator > 0, numerator / ops.where(denominator > 0, denominator, 1.0), 0.0)
