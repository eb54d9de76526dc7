"""One image file: judged by its header, decoded, made to fit."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from dioptra_assets.robustness.data.base import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


def check_header(path: Path, *, max_pixels: int) -> None:
    """Refuse a file by what its header says, without decoding a pixel.

    Raises:
        DataError: when the file is no PNG or JPEG, declares more than `max_pixels`, or has a form that is not taken.
    """
    with _naming(path), path.open("rb") as stream:
        _open(stream, max_pixels)


def decode(path: Path, *, shape: tuple[int, int, int], resize: str, max_pixels: int) -> np.ndarray:
    """The picture, upright, in grey or RGB, stretched to `shape` with a filter of Pillow.

    Returns:
        uint8 [height, width, channels].

    Raises:
        DataError: as :func:`check_header`, and when the file is damaged, truncated or shows through.
    """
    from PIL import Image, ImageOps

    height, width, channels = shape
    with _naming(path), path.open("rb") as stream:
        image = _open(stream, max_pixels)
        ImageOps.exif_transpose(image, in_place=True)
        image = _opaque(image)
        sized = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling[resize.upper()])
        return np.asarray(sized, np.uint8).reshape(shape)


def _open(stream: IO[bytes], max_pixels: int) -> "PillowImage":
    """The image with its header read and judged, and no pixel decoded."""
    from PIL import Image

    head = stream.read(25)
    if not head:
        raise DataError("has zero bytes")
    image = Image.open(stream, formats=("PNG", "JPEG"))
    if image.width * image.height > max_pixels:
        raise DataError(f"declares {image.width:,} x {image.height:,} pixels, more than max_pixels = {max_pixels:,}")
    # Pillow cuts 16 bits of RGB to 8 without a word, so the depth is read from the file itself.
    if image.format == "PNG" and head[24] == 16:
        raise DataError("has 16 bits a channel: save it with 8")
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise DataError("is an animated PNG: save one frame")
    if image.mode not in MODES:
        raise DataError(f"has colour mode {image.mode}: save it as RGB or grey")
    return image


def _opaque(image: "PillowImage") -> "PillowImage":
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    least = image.getchannel("A").getextrema()[0]
    if least != 255:
        raise DataError("has pixels that show through: flatten it onto a background")
    return image


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever Pillow finds wrong becomes one error that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is not a PNG or JPEG image, or its header is damaged") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: declares far more pixels than max_pixels") from error
    # The kinds that Pillow's readers let through on damaged files.
    except (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from error
