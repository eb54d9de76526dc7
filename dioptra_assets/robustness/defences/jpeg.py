"""JPEG compression: each image through the encoder and back."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from dioptra_assets.robustness.defences.base import Defence

BLOCK = 8  # JPEG codes blocks of 8 x 8 pixels
PICTURE_SIDE = 2048  # of a picture of many tiles
PIXELS_A_THREAD = 1 << 17  # fewer cost less than starting a thread


class JpegCompression(Defence, frozen=True, extra="forbid"):
    """Each image coded as JPEG and decoded (Dziugaite et al. 2016, arXiv 1608.00853, section 2).

    Images of three channels are coded as RGB with libjpeg's usual halved colour resolution, images of any other number
    channel by channel. Pixels are clipped to [0, 1] and rounded to bytes first. That is where this differs from ART's
    `JpegCompression`, which cuts the fraction off and lets 1.01 wrap round to 0.004; on pixels that are bytes already,
    k / 255, both give the same bits.
    """

    method: Literal["jpeg_compression"] = "jpeg_compression"
    quality: int = Field(
        default=50, ge=1, le=100, strict=True, description="From 1 (smallest file) to 100; above 95 hardly compresses."
    )
    channels_first: bool = Field(
        default=False, description="Only false: image sets are laid out [image, row, column, channel]."
    )

    @field_validator("channels_first")
    @classmethod
    def _one_layout(cls, channels_first: bool) -> bool:
        if channels_first:
            raise ValueError(
                "channels_first is true: only false is allowed, every image set is laid out [image, row, column, "
                "channel] with the channels last, whatever layout the images had before they were loaded"
            )
        return channels_first

    def describe(self) -> str:
        """See the base class."""
        return f"JPEG of quality {self.quality}"

    def transform(self, images: np.ndarray, *, rows: np.ndarray, seed: int) -> np.ndarray:
        """See the base class. Nothing is drawn at random: `rows` and `seed` change nothing."""
        if len(images) == 0:
            return images.copy()
        n, height, width, channels = images.shape
        pixels = _to_bytes(images)
        if channels == 3:
            return self._compress(_compress_colour, pixels)
        planes = pixels.transpose(0, 3, 1, 2).reshape(n * channels, height, width)
        compressed = self._compress(_compress_grey, planes).reshape(n, channels, height, width)
        return np.ascontiguousarray(compressed.transpose(0, 2, 3, 1))

    def _compress(self, compress: Callable[[np.ndarray, int, np.ndarray], None], pixels: np.ndarray) -> np.ndarray:
        compressed = np.empty(pixels.shape, np.float32)
        threads = min(os.cpu_count() or 1, len(pixels), max(1, pixels.size // PIXELS_A_THREAD))
        if threads == 1:
            compress(pixels, self.quality, compressed)
            return compressed
        stretches = zip(np.array_split(pixels, threads), np.array_split(compressed, threads), strict=True)
        with ThreadPoolExecutor(threads) as pool:  # cv2 lets go of the interpreter while it codes
            for done in [pool.submit(compress, source, self.quality, target) for source, target in stretches]:
                done.result()
        return compressed


def _to_bytes(images: np.ndarray) -> np.ndarray:
    """As `image_set.to_uint8`, in a fifth of the time."""
    import cv2

    # cv2 takes the absolute value, cuts at 255 and rounds to nearest, halves to even; it knows no fourth dimension.
    return cv2.convertScaleAbs(np.maximum(images, 0).reshape(len(images), -1), alpha=255).reshape(images.shape)


def _compress_colour(images: np.ndarray, quality: int, out: np.ndarray) -> None:
    """uint8 [n, height, width, 3], each image by itself: its colours are smoothed across the edges of blocks."""
    import cv2

    n, height, width, _ = images.shape
    bgr = cv2.cvtColor(images.reshape(n * height, width, 3), cv2.COLOR_RGB2BGR).reshape(images.shape)
    for source, target in zip(bgr, out, strict=True):
        np.divide(_through_jpeg(source, quality, cv2.IMREAD_COLOR_RGB), 255, out=target, dtype=np.float32)


def _compress_grey(planes: np.ndarray, quality: int, out: np.ndarray) -> None:
    """uint8 [n, height, width], many planes as tiles of one picture.

    Blocks of a grey JPEG know nothing of each other, and an encoder fills the last ones up by repeating the edge pixel.
    Tiles filled up in that way to whole blocks therefore decode to the same bits as planes coded one by one.
    """
    import cv2

    n, height, width = planes.shape
    tall, wide = height + -height % BLOCK, width + -width % BLOCK
    across, down = max(1, min(n, PICTURE_SIDE // wide)), max(1, PICTURE_SIDE // tall)
    for start in range(0, n, across * down):
        tiles, target = planes[start : start + across * down], out[start : start + across * down]
        bands = [slice(first, first + across) for first in range(0, len(tiles), across)]
        picture = np.zeros((len(bands), tall, across, wide), np.uint8)
        for band, rows in zip(picture, bands, strict=True):
            band[:height, : len(tiles[rows]), :width] = tiles[rows].transpose(1, 0, 2)
        picture[:, :height, :, width:] = picture[:, :height, :, width - 1 : width]
        picture[:, height:] = picture[:, height - 1 : height]
        coded = _through_jpeg(picture.reshape(-1, across * wide), quality, cv2.IMREAD_GRAYSCALE)
        for band, rows in zip(coded.reshape(picture.shape), bands, strict=True):
            decoded = band[:height, : len(target[rows]), :width].transpose(1, 0, 2)
            np.divide(decoded, 255, out=target[rows], dtype=np.float32)


def _through_jpeg(picture: np.ndarray, quality: int, flags: int) -> np.ndarray:
    import cv2

    coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(coded, flags)
    if decoded is None:
        raise RuntimeError(f"a JPEG of {picture.shape[0]} x {picture.shape[1]} pixels could not be decoded again")
    return decoded
