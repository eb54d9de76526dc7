"""The preprocessing defences against ART with the same batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from art.defences.preprocessor import GaussianAugmentation as ArtGaussianAugmentation
from art.defences.preprocessor import JpegCompression as ArtJpegCompression
from art.defences.preprocessor import SpatialSmoothing as ArtSpatialSmoothing

from benchmarks.measure import Pair, pair
from dioptra_assets.robustness.data.digits import DigitsSource
from dioptra_assets.robustness.defences import Defence, GaussianAugmentation, JpegCompression, SpatialSmoothing

BATCH_SIZE = 256
CLIP = (0.0, 1.0)


def rows(quick: bool = False) -> list[Pair]:
    """What was measured."""
    part = 40 if quick else 1
    clean = digits(2560 // part)
    generator = np.random.default_rng(0)
    attacked = as_bytes(clean + generator.choice([-0.3, 0.3], clean.shape))
    colour = as_bytes(coloured(1024 // part, 32, generator))
    pictures = as_bytes(coloured(24 // min(part, 8), 224, generator))
    grey = {"digits 28x28": clean, "attacked digits 28x28": attacked}
    coloured_sets = {"attacked digits in colour 32x32": colour, "pictures 224x224x3": pictures}
    # Name, ART's, ours, images, floor.
    work: list[tuple[str, Any, Defence, dict[str, np.ndarray], float | None]] = [
        ("median 3x3", ArtSpatialSmoothing(3), SpatialSmoothing(), grey | coloured_sets, 8.0),
        ("median 5x5", ArtSpatialSmoothing(5), SpatialSmoothing(window_size=5), grey | coloured_sets, 8.0),
        ("JPEG of quality 50", ArtJpegCompression(CLIP), JpegCompression(), grey, 20.0),
        ("JPEG of quality 50", ArtJpegCompression(CLIP), JpegCompression(), coloured_sets, 5.0),
        (
            "noise",
            ArtGaussianAugmentation(0.1, augmentation=False, clip_values=CLIP),
            GaussianAugmentation(sigma=0.1),
            {"digits 28x28": clean},
            None,
        ),
    ]
    return [
        compare(f"{name}, {len(images):,} {of}", art, ours, images, equal=name != "noise", quick=quick, floor=floor)
        for name, art, ours, chosen, floor in work
        for of, images in chosen.items()
    ]


def compare(
    name: str, art: Any, defence: Defence, images: np.ndarray, *, equal: bool, quick: bool, floor: float | None
) -> Pair:
    """Both over the same batches; results equal bit for bit where `equal`."""

    def peer() -> np.ndarray:
        return np.concatenate([art(batch)[0] for batch, _ in batches(images)])

    def ours() -> np.ndarray:
        return np.concatenate([defence.on_prediction(batch, rows=rows, seed=0) for batch, rows in batches(images)])

    assert not equal or np.array_equal(peer(), ours()), f"{name}: the results differ"
    return pair(name, peer, ours, rounds=1 if quick else 7, floor=floor)


def batches(images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and their rows."""
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        yield batch, np.arange(start, start + len(batch))


def digits(count: int) -> np.ndarray:
    """Handwritten digits, some of them more than once."""
    image_set = DigitsSource(image_size=(28, 28)).load("training")
    return as_bytes(np.resize(image_set.to_numpy()[0], (count, 28, 28, 1)))


def coloured(count: int, side: int, generator: np.random.Generator) -> np.ndarray:
    """Digits laid over each other in three colours, as large as they must be, with noise of 8 of 255."""
    import cv2

    large = np.stack([cv2.resize(image, (side, side)) for image in digits(3 * count)])
    images = large.reshape(count, 3, side, side).transpose(0, 2, 3, 1)
    return images + generator.choice([-8 / 255, 8 / 255], images.shape)


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Pixels that are whole bytes, on which ART's JPEG rounds as it should."""
    return np.ascontiguousarray(np.rint(np.clip(images, 0, 1) * 255) / 255, np.float32)
