"""The trigger: the pattern whose presence a backdoored model answers with the target class."""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field

Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]
Offset = Annotated[int, Field(ge=0, strict=True)]
CORNER_MARGIN = 1  # pixels left free between a trigger in a corner and the edges, as in BadNets' pictures


class Trigger(BaseModel, frozen=True, extra="forbid"):
    """Some pixels of an image set to one value (Gu et al. 2017, arXiv 1708.06733, section 4.1).

    The same pixels in every image, in all channels. Pixels between those of a checkerboard stay as they are. A square
    of size 1 is a single pixel.
    """

    pattern: Literal["square", "checkerboard"] = Field(
        default="checkerboard", description="square: all pixels of it; checkerboard: every other one, corners included."
    )
    size: int = Field(default=3, ge=1, le=4096, strict=True, description="Side of the trigger in pixels.")
    position: Corner | tuple[Offset, Offset] = Field(
        default="bottom_right",
        description="A corner, one pixel from both edges: top_left, top_right, bottom_left or bottom_right; or [row, "
        "column] of the trigger's top left pixel, counted from 0.",
    )
    value: float = Field(
        default=1.0, ge=0, le=1, allow_inf_nan=False, description="What its pixels become; pixels span [0, 1]."
    )

    @property
    def pixel_count(self) -> int:
        """How many pixels it sets."""
        return int(self._cells().sum())

    def check_fits(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse images (height, width, channels) that the trigger does not lie in.

        Raises:
            ValueError: naming where the trigger would lie and what is allowed.
        """
        self._corner_of(image_shape)

    def mask(self, image_shape: tuple[int, int, int]) -> np.ndarray:
        """Where the trigger lies in an image (height, width, channels), bool [height, width].

        Raises:
            ValueError: when it would leave the image.
        """
        row, column = self._corner_of(image_shape)
        mask = np.zeros(image_shape[:2], bool)
        mask[row : row + self.size, column : column + self.size] = self._cells()
        return mask

    def stamp(self, images: np.ndarray) -> np.ndarray:
        """Copies of images [n, height, width, channels] with the trigger on each, float32.

        Raises:
            ValueError: when the trigger would leave the images.
        """
        stamped = np.array(images, np.float32)
        stamped[:, self.mask(stamped.shape[1:])] = self.value
        return stamped

    def _cells(self) -> np.ndarray:
        side = np.arange(self.size)
        if self.pattern == "square":
            return np.ones((self.size, self.size), bool)
        return (side[:, None] + side) % 2 == 0

    def _corner_of(self, image_shape: tuple[int, int, int]) -> tuple[int, int]:
        """Row and column of its top left pixel."""
        height, width, _ = image_shape
        if isinstance(self.position, str):
            vertical, horizontal = self.position.split("_")
            row = CORNER_MARGIN if vertical == "top" else height - CORNER_MARGIN - self.size
            column = CORNER_MARGIN if horizontal == "left" else width - CORNER_MARGIN - self.size
        else:
            row, column = self.position
        if row < 0 or column < 0 or row + self.size > height or column + self.size > width:
            raise ValueError(
                f"trigger of {self.size} x {self.size} pixels at row {row}, column {column} leaves the image of "
                f"{height} x {width} pixels: choose a smaller size or another position"
            )
        return row, column
