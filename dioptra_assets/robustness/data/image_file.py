"""One image file: judged by its header, decoded, made to fit."""

import re
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

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
# A marker of a JPEG that is none of those within coded data: a stuffed byte, a restart, a filler.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_PNG_END = b"IEND\xaeB`\x82"


def check_header(path: Path, *, max_pixels: int) -> None:
    """Refuse a file by what its header says, without decoding a pixel.

    Raises:
        DataError: when the file is no PNG or JPEG, declares more than `max_pixels`, or has a form that is not taken.
    """
    with _naming(path), path.open("rb") as stream:
        _open(stream, max_pixels)


def decode(
    path: Path, *, shape: tuple[int, int, int], resize: str, max_pixels: int, short_side: int | None = None
) -> np.ndarray:
    """The picture, upright, in grey or RGB, brought to `shape` with a filter of Pillow.

    It is stretched; with `short_side` its short side is brought to that many pixels and the middle is cut out.

    Returns:
        uint8 [height, width, channels].

    Raises:
        DataError: as :func:`check_header`, and when the file is damaged, truncated or shows through.
    """
    from PIL import Image, ImageOps

    height, width, channels = shape
    with _naming(path), path.open("rb") as stream:
        image = _open(stream, max_pixels)
        _check_end(path.read_bytes(), str(image.format))
        ImageOps.exif_transpose(image, in_place=True)
        image = _opaque(image)
        image = image.convert("L" if channels == 1 else "RGB")
        size = (width, height) if short_side is None else _proportional(image.size, short_side)
        sized = image.resize(size, Image.Resampling[resize.upper()])
        if short_side is not None:
            left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
            sized = sized.crop((left, top, left + width, top + height))
        return np.asarray(sized, np.uint8).reshape(shape)


def _proportional(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(width, height) with the short side of that length; the long one rounded down, as in torchvision."""
    width, height = size
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _check_end(content: bytes, kind: str) -> None:
    """Refuse a file that stops before its end marker: decoders fill in what is missing, or never look."""
    if kind == "PNG":
        if _PNG_END not in content:
            raise DataError("is truncated: the end of the PNG is missing")
        return
    # A thumbnail within has markers of its own, so segments are followed from the beginning.
    position = 2
    while found := _JPEG_MARKER.search(content, position):
        marker = found[1][0]
        if marker == 0xD9:
            return
        length = int.from_bytes(content[found.end() : found.end() + 2], "big")
        position = found.end() + max(length, 2) if marker != 0x01 else found.end()
    raise DataError("is truncated: the end marker of the JPEG is missing")


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
        raise DataError("has 16 bits per channel: save it with 8")
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
