"""Spatial smoothing: the median of the pixels around each pixel."""

from typing import Literal

import numpy as np
from pydantic import Field

from dioptra_assets.robustness.defences.base import Defence

FAST_WINDOWS = (3, 5)  # what cv2.medianBlur takes of float32


class SpatialSmoothing(Defence, frozen=True, extra="forbid"):
    """Each pixel becomes the median of a window around it (Xu et al. 2018, arXiv 1704.01155, section II.C.2).

    Every channel is smoothed by itself, and beyond its edge an image goes on as its mirror image, the edge pixel
    repeated. A window of even size k reaches k / 2 pixels up and to the left and one less down and to the right, and
    its median is the larger of the two middle values. All of this is ART's `SpatialSmoothing`, bit for bit.
    """

    method: Literal["spatial_smoothing"] = "spatial_smoothing"
    window_size: int = Field(
        default=3, ge=1, le=999, strict=True, description="Height and width of the window in pixels; 1 changes nothing."
    )

    def describe(self) -> str:
        """See the base class."""
        return f"median of {self.window_size} x {self.window_size} pixels"

    def transform(self, images: np.ndarray, *, rows: np.ndarray, seed: int) -> np.ndarray:
        """See the base class. Nothing is drawn at random: `rows` and `seed` change nothing."""
        if self.window_size == 1 or len(images) == 0:
            return images.copy()
        if self.window_size in FAST_WINDOWS:
            return _median_of_stack(images, self.window_size)
        from scipy.ndimage import median_filter

        return median_filter(images, size=(1, self.window_size, self.window_size, 1), mode="reflect")


def _median_of_stack(images: np.ndarray, window: int) -> np.ndarray:
    """All images, mirrored beyond their edges, one below the other in one picture: one call of cv2 for all of them."""
    import cv2

    n, height, width, channels = images.shape
    planes = images
    if channels not in (1, 3, 4):  # what cv2 takes
        planes = images.transpose(0, 3, 1, 2).reshape(n * channels, height, width, 1)
    margin = window // 2
    # On the left and the right cv2 repeats the edge pixel, which a margin of 1 needs no help with.
    sideways = margin if margin > 1 else 0
    padded = np.pad(planes, ((0, 0), (margin, margin), (sideways, sideways), (0, 0)), mode="symmetric")
    count, rows, columns, depth = padded.shape
    blurred = cv2.medianBlur(padded.reshape(count * rows, columns, depth), window)
    blurred = blurred.reshape(padded.shape)[:, margin : margin + height, sideways : sideways + width]
    if depth != channels:
        blurred = blurred.reshape(n, channels, height, width).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(blurred)
