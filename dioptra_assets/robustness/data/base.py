"""What every data source is: a typed, closed config that loads image sets."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field

from dioptra_assets.robustness.image_set import ImageSet

DATA_VARIABLE = "DIOPTRA_ASSETS_DATA"

Split = Literal["training", "testing"]
Side = Annotated[int, Field(ge=1, le=4096, description="pixels")]


class DataError(ValueError):
    """Data that cannot be used; the message names the file or folder and says what to do."""


class DataSource(BaseModel, ABC, frozen=True, extra="forbid"):
    """Where the images of an experiment come from.

    A subclass is told apart by its field `source`. Nothing is read before :meth:`load`.
    """

    @abstractmethod
    def load(self, split: Split) -> ImageSet:
        """The images of one split, float32 in [0, 1], [n, height, width, channels].

        Raises:
            DataError: when a file is missing, damaged or refused.
        """

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""

    @abstractmethod
    def class_count(self) -> int | None:
        """The number of classes, or None when only the data can tell."""


@dataclass(frozen=True)
class BytePixels:
    """Images held as bytes, a quarter of their size as floats, and converted as they are read.

    Attributes:
        bytes: uint8 [n, height, width, channels].
    """

    bytes: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, height, width, channels]."""
        return self.bytes.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        """float32 [rows, height, width, channels] in [0, 1]."""
        return to_float(self.bytes[rows])


def to_float(images: np.ndarray) -> np.ndarray:
    """Bytes of [0, 255] as float32 of [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def local_data(name: str) -> Path | None:
    """The folder `name` of the data on this machine, or None.

    Looked for in the folder that the environment variable DIOPTRA_ASSETS_DATA names, then in `shared/data` beside the
    repository.
    """
    variable = os.environ.get(DATA_VARIABLE)
    roots = [Path(variable).expanduser()] if variable else []
    roots.append(Path(__file__).resolve().parents[4] / "shared" / "data")
    return next((root / name for root in roots if (root / name).is_dir()), None)
