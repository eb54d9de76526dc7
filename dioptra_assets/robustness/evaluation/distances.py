"""How far each image has moved: distances between an image set and what an attack made of it."""

import numpy as np
import pandas as pd

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import DEFAULT_BATCH_SIZE, ImageSet

DISTANCE_COLUMNS: dict[str, str] = {
    "l0": "positions (row, column) where any channel differs, in pixels, 0 to height * width",
    "l1": "sum of absolute differences over pixels and channels, in units of the pixel range [0, 1]",
    "l2": "Euclidean distance over pixels and channels, in units of the pixel range [0, 1]",
    "linf": "largest absolute difference of any pixel and channel, in units of the pixel range, 0 to 1",
    "cosine": "cosine similarity of the two images as vectors, 0 to 1; 1 is the same direction",
    "wasserstein": "1-D Wasserstein distance between the pixel values of the two images, positions ignored, 0 to 1",
}

# Work on so many values at a time, 16 MB in float64: a batch of photographs is then not held several times over.
_VALUES_AT_ONCE = 2**21


def set_distances(clean: ImageSet, adversarial: ImageSet, batch_size: int = DEFAULT_BATCH_SIZE) -> pd.DataFrame:
    """The distances between two image sets of the same images, read a batch at a time.

    Returns:
        One row per image, in the order of the sets: `image_id` and the columns of `image_distances`.

    Raises:
        ValueError: when the sets do not hold the same images in the same order.
        NonFiniteError: when a pixel is NaN or infinite.
    """
    left, right = clean.index["image_id"].tolist(), adversarial.index["image_id"].tolist()
    if left != right:
        row = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
        raise ValueError(
            f"{adversarial.name} ({len(right)} images) does not hold the images of {clean.name} ({len(left)}) in the "
            f"same order: they part at row {row}, {left[row : row + 1]} against {right[row : row + 1]}"
        )
    tables = []
    for before, after in zip(clean.batches(batch_size), adversarial.batches(batch_size), strict=True):
        try:
            table = image_distances(before.images, after.images)
        except ValueError as error:
            raise type(error)(f"{clean.name} against {adversarial.name}: {error}") from error
        table.insert(0, "image_id", before.index["image_id"].to_numpy())
        tables.append(table)
    if not tables:
        raise ValueError(f"{clean.name}: no images to compare")
    return pd.concat(tables, ignore_index=True)


def image_distances(clean: np.ndarray, adversarial: np.ndarray) -> pd.DataFrame:
    """The distances between images, row by row, summed in float64.

    `cosine` is a similarity, 1 where nothing changed: two images of zeros count as the same direction (1), an image of
    zeros and any other as unlike (0). `wasserstein` equals `scipy.stats.wasserstein_distance` of the flattened images:
    between two samples of one size it is the mean distance of the sorted values.

    Args:
        clean: float32 [n, height, width, channels] in [0, 1].
        adversarial: the same shape.

    Returns:
        n rows, the columns of `DISTANCE_COLUMNS`: `l0` int64, the others float64.

    Raises:
        ValueError: when the shapes differ or are not [n, height, width, channels].
        NonFiniteError: when a pixel is NaN or infinite.
    """
    if clean.shape != adversarial.shape or clean.ndim != 4:
        raise ValueError(
            f"images of shape {clean.shape} and {adversarial.shape} cannot be compared: both must be the same "
            f"[n, height, width, channels]"
        )
    step = max(1, _VALUES_AT_ONCE // max(1, int(np.prod(clean.shape[1:]))))
    parts = [_distances(clean[i : i + step], adversarial[i : i + step]) for i in range(0, len(clean), step)]
    columns = {name: [part[name] for part in parts] for name in DISTANCE_COLUMNS}
    return pd.DataFrame(
        {
            name: np.concatenate([np.empty(0, np.int64 if name == "l0" else np.float64), *values])
            for name, values in columns.items()
        }
    )


def _distances(clean: np.ndarray, adversarial: np.ndarray) -> dict[str, np.ndarray]:
    n = len(clean)
    a = clean.reshape(n, -1).astype(np.float64)
    b = adversarial.reshape(n, -1).astype(np.float64)
    difference = np.abs(b - a)
    # NaN and infinity survive a sum of absolute values, so no second pass over the pixels is needed to find them.
    l1 = difference.sum(axis=1)
    if not np.isfinite(l1).all():
        raise NonFiniteError(f"non-finite pixels in {np.count_nonzero(~np.isfinite(l1))} of {n} images")
    squares_a, squares_b = np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->i", b, b)
    product = np.einsum("ij,ij->i", a, b)
    lengths = np.sqrt(squares_a * squares_b)
    similarity = np.divide(product, lengths, out=np.zeros(n), where=lengths > 0)
    similarity[(squares_a == 0) & (squares_b == 0)] = 1.0
    a.sort(axis=1)
    b.sort(axis=1)
    return {
        "l0": (clean != adversarial).any(axis=-1).reshape(n, -1).sum(axis=1, dtype=np.int64),
        "l1": l1,
        "l2": np.sqrt(np.einsum("ij,ij->i", difference, difference)),
        "linf": difference.max(axis=1),
        "cosine": np.clip(similarity, -1.0, 1.0),
        "wasserstein": np.abs(a - b).mean(axis=1),
    }
