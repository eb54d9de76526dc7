"""How near inverted images come to the classes they stand for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dioptra_assets.robustness.attacks import compiled
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.image_set import ImageSet


def training_means(training_set: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """The mean image of a set and of each of its classes, read a batch at a time.

    Returns:
        float32 [height, width, channels], and float32 [classes, height, width, channels], NaN for a class without
        images.

    Raises:
        ValueError: when the set is empty.
    """
    if len(training_set) == 0:
        raise ValueError(f"{training_set.name}: no images to take the mean of")
    sums = np.zeros((len(training_set.class_names), *training_set.image_shape))
    for batch in training_set.batches():
        np.add.at(sums, batch.labels, batch.images)
    counts = np.bincount(training_set.labels, minlength=len(sums)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        by_class = sums / counts[:, None, None, None]
    return (sums.sum(axis=0) / len(training_set)).astype(np.float32), by_class.astype(np.float32)


def inversion_table(
    images: ImageSet, class_means: np.ndarray, model: Any, other_models: Mapping[str, Any]
) -> pd.DataFrame:
    """How near the inverted images come to their classes.

    Args:
        images: an inverted set: its index has the columns of `inversion.INVERTED_COLUMNS`.
        class_means: [classes, height, width, channels], the mean training image of each class; NaN where there is none.
        model: the model that was inverted.
        other_models: name -> a model that was not, trained on the same classes.

    Returns:
        One row an image: `image_id`, `label`, `class_name`, `confidence` (softmax probability the inverted model gives
        the class), `prediction` (class it gives), `l2_to_class_mean` (pixels span [0, 1]), `ssim_to_class_mean` (see
        :func:`structural_similarity`), `nearest_class_mean` (class whose mean is nearest in L2), `iterations`,
        `stop_reason`, `zero_gradient`, and for each other model `prediction_NAME`. L2 and SSIM are NaN where the class
        has no mean.

    Raises:
        NonFiniteError: when an image or a logit is NaN or infinite.
        ValueError: when the means do not fit the images.
    """
    expected = (len(images.class_names), *images.image_shape)
    if class_means.shape != expected:
        raise ValueError(f"{images.name}: class means of shape {class_means.shape}, expected {expected}")
    pixels, labels = images.to_numpy()
    own_means = class_means[labels]
    known = np.flatnonzero(np.isfinite(class_means).all(axis=(1, 2, 3)))
    to_known = np.stack([_l2(pixels, class_means[label]) for label in known], axis=1) if len(known) else None
    own = predict(model, images)
    columns: dict[str, Any] = {
        "image_id": images.index["image_id"].to_numpy(),
        "label": labels,
        "class_name": [images.class_names[label] for label in labels],
        "confidence": _class_confidence(model, pixels, labels),
        "prediction": own["prediction"].to_numpy(),
        "l2_to_class_mean": _l2(pixels, own_means),
        "ssim_to_class_mean": structural_similarity(pixels, own_means),
        "nearest_class_mean": pd.array(
            [pd.NA] * len(labels) if to_known is None else known[to_known.argmin(axis=1)], dtype="Int64"
        ),
        **{column: images.index[column].to_numpy() for column in ("iterations", "stop_reason", "zero_gradient")},
    }
    for name, other in other_models.items():
        columns[f"prediction_{name}"] = predict(other, images)["prediction"].to_numpy()
    return pd.DataFrame(columns)


def structural_similarity(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The mean SSIM of pairs of images (Wang et al. 2004, IEEE TIP 13(4), equations 13 and 17).

    With the paper's constants (K1 0.01, K2 0.03, range 1) and circular Gaussian window of 11 x 11 and deviation 1.5,
    averaged over channels and over the positions where the whole window lies in the image; an image smaller than the
    window is mirrored at its borders instead.

    Args:
        images: float [n, height, width, channels] in [0, 1].
        others: the same shape.

    Returns:
        float64 [n], at most 1, which is two equal images.
    """
    from scipy.ndimage import gaussian_filter

    def local_mean(values: np.ndarray) -> np.ndarray:
        means = gaussian_filter(values, sigma=(0, 1.5, 1.5, 0), radius=(0, 5, 5, 0), mode="reflect")
        rows, columns = (slice(5, size - 5) if size >= 11 else slice(None) for size in values.shape[1:3])
        return means[:, rows, columns]

    x, y = images.astype(np.float64), others.astype(np.float64)
    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x, variance_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return similarity.mean(axis=(1, 2, 3))


def _l2(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.sqrt(((images.astype(np.float64) - others) ** 2).sum(axis=(1, 2, 3)))


def _class_confidence(model: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from keras import ops

    batches = [
        np.asarray(ops.convert_to_numpy(compiled.logits_of(model, images[start : start + 256])), np.float64)
        for start in range(0, len(images), 256)
    ]
    logits = np.concatenate(batches)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponentials[np.arange(len(labels)), labels] / exponentials.sum(axis=1)).astype(np.float32)
