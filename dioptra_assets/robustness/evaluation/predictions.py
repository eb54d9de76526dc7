"""What a model says of an image set: one row per image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import DEFAULT_BATCH_SIZE, ImageBatch, ImageSet
from dioptra_assets.robustness.memory import rows_that_fit
from dioptra_assets.robustness.model_cache import made_of

# Above this many classes a row of probabilities costs more than everything else in the table together.
MAX_PROBABILITY_CLASSES = 100


def predict(model: Any, image_set: ImageSet, batch_size: int = DEFAULT_BATCH_SIZE) -> pd.DataFrame:
    """Predict every image of a set once, in order.

    Memory is bounded by a batch of images and the table.

    Args:
        model: a Keras model from float32 [rows, height, width, channels] in [0, 1] to logits [rows, classes], its
            classes in the order of `image_set.class_names`.
        image_set: at least one image.
        batch_size: images a forward pass, at most, and fewer where so many do not fit in memory (see
            `robustness/memory.py`); the last batch may be smaller.

    Returns:
        One row per image, in the order of the set: `image_id` (str), `label` and `prediction` (int64), `confidence`
        (float32 in [0, 1], softmax of the predicted class), `margin` (float32, logit of the true class less the largest
        other logit: negative where the image is classified wrong) and `probabilities` (float32 [classes], or None where
        there are more than `MAX_PROBABILITY_CLASSES`).

    Raises:
        NonFiniteError: when pixels or logits are NaN or infinite; names the set, how many images and the first of them.
        ValueError: when the set is empty, or the model does not give one logit per class.
    """
    if len(image_set) == 0:
        raise ValueError(f"{image_set.name}: no images to predict")
    forward = _forward(model)
    tables: list[pd.DataFrame] = []
    non_finite: dict[str, list[str]] = {"pixels": [], "logits": []}
    for batch in image_set.batches(rows_that_fit(model, batch_size, gradients=False)):
        logits = forward(np.asarray(batch.images, np.float32))
        _check_width(logits, len(batch.index), image_set)
        # A pixel that is NaN can vanish in a maximum or a ReLU and leave finite logits, so both are looked at.
        for what, values in (("pixels", batch.images), ("logits", logits)):
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            non_finite[what] += [str(batch.index["image_id"].iloc[row]) for row in np.flatnonzero(bad)]
        tables.append(_table(batch, logits.astype(np.float64)))
    for what, ids in non_finite.items():
        if ids:
            more = ", ..." if len(ids) > 5 else ""
            raise NonFiniteError(
                f"{image_set.name}: non-finite {what} for {len(ids)} of {len(image_set)} images "
                f"({', '.join(ids[:5])}{more}); nothing is reported for this set"
            )
    return pd.concat(tables, ignore_index=True)


def logits_of(model: Any, images: np.ndarray) -> np.ndarray:
    """The logits of a few images in one forward pass, float32 [rows, classes]."""
    return _forward(model)(np.asarray(images, np.float32))


def _compiled(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The model on numpy batches, compiled once a model with TensorFlow: `Model.predict` costs 0.1 s a call."""
    import keras

    def eager(images: Any) -> Any:
        return model(images, training=False)

    call = eager
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        call = tf.function(eager, reduce_retracing=True)
    return lambda images: np.asarray(keras.ops.convert_to_numpy(call(keras.ops.convert_to_tensor(images))))


def _forward(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    return made_of(model, "forward", lambda: _compiled(model))


def _check_width(logits: np.ndarray, rows: int, image_set: ImageSet) -> None:
    classes = len(image_set.class_names)
    if logits.shape != (rows, classes) or classes < 2:
        raise ValueError(
            f"{image_set.name}: the model gives logits of shape {logits.shape} for {rows} images of {classes} classes; "
            f"it must give one logit per class, for two classes or more: use a model trained on the same class list"
        )


def _table(batch: ImageBatch, logits: np.ndarray) -> pd.DataFrame:
    rows = np.arange(len(logits))
    labels = batch.labels
    prediction = logits.argmax(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):  # non-finite logits are reported by the caller, all at once
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
        others = logits.copy()
        others[rows, labels] = -np.inf
        margin = logits[rows, labels] - others.max(axis=1)
    keep = logits.shape[1] <= MAX_PROBABILITY_CLASSES
    return pd.DataFrame(
        {
            "image_id": batch.index["image_id"].to_numpy(),
            "label": labels,
            "prediction": prediction.astype(np.int64),
            "confidence": probabilities[rows, prediction],
            "margin": margin.astype(np.float32),
            "probabilities": pd.Series(list(probabilities) if keep else [None] * len(rows), dtype=object),
        }
    )
