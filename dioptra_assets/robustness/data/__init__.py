"""Data sources: where the images of an experiment come from."""

from typing import Annotated

from pydantic import Field

from dioptra_assets.robustness.data.base import DataError, DataSource, Split
from dioptra_assets.robustness.data.digits import DigitsSource
from dioptra_assets.robustness.data.image_folder import ImageFolderSource
from dioptra_assets.robustness.data.mnist import MnistSource

AnySource = Annotated[DigitsSource | MnistSource | ImageFolderSource, Field(discriminator="source")]

__all__ = ["AnySource", "DataError", "DataSource", "DigitsSource", "ImageFolderSource", "MnistSource", "Split"]
