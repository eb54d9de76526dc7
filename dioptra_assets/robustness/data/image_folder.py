"""Photographs in folders, one folder a class: `training/CLASS/*` and `testing/CLASS/*`."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from dioptra_assets.robustness.architectures import IMAGENET_CLASSES
from dioptra_assets.robustness.data.base import (
    DATA_VARIABLE,
    DataError,
    DataSource,
    Side,
    Split,
    local_data,
    to_float,
)
from dioptra_assets.robustness.data.image_file import check_header, decode
from dioptra_assets.robustness.image_set import ImageSet

# Few, because each may hold an image of `max_pixels`.
THREADS = 4
FILES_PER_ROUND = 1000
FILES_PER_ERROR = 10
# The classes of Keras' pretrained models: position -> [WordNet id, name]. The checksum is the one that Keras asks for.
CLASS_INDEX = "imagenet_class_index.json"
CLASS_INDEX_URL = f"https://storage.googleapis.com/download.tensorflow.org/data/{CLASS_INDEX}"
CLASS_INDEX_MD5 = "c2c37ea517e94d9795004a39431a14cb"
TIMEOUT_SECONDS = 30


class ImageFolderSource(DataSource, frozen=True):
    """PNG and JPEG files in `training/CLASS/*` and `testing/CLASS/*`, decoded as they are read.

    One list of classes gives the labels of both splits: `classes` or `classes_file` where given, in that order, else
    the class folders of `training` (of `testing` where there is no `training`) in natural order, "2" before "10".

    Files count by content, whatever they are called. Names that start with a dot are passed over; anything else that is
    no PNG or JPEG is refused by name. Pictures are turned as their EXIF orientation says, become grey (ITU-R 601) or
    RGB, and are stretched to `image_size`; colour profiles are not applied. Refused: 16 bits a channel, CMYK, animated
    PNG, and pixels that show through, because no one said what is behind them. Of a JPEG with several pictures the
    first is taken.

    Attributes:
        directory: the folder that holds `training`, `testing` or both. No link in them may leave it. A relative path is
            looked for in the working directory, then in the folder that DIOPTRA_ASSETS_DATA names.
        image_size: (height, width) in pixels.
        channels: 1 for grey, 3 for RGB.
        resize: the filter of Pillow; `bilinear` and `bicubic` smooth before they shrink.
        max_pixels: the most pixels that a file may declare. Decoding takes up to about 12 bytes a pixel, four files at
            a time. Pillow takes more than 89,478,485 for a decompression bomb.
        classes: the class folders, in the order of the labels of a pretrained model, or `imagenet`: the 1,000 WordNet
            ids in the order of models pretrained on ImageNet. The folders may be fewer.
        classes_file: the same as a UTF-8 text file, one class a line.
    """

    source: Literal["image_folder"] = "image_folder"
    directory: Path
    image_size: tuple[Side, Side]
    channels: Literal[1, 3] = 3
    resize: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    max_pixels: int = Field(default=50_000_000, ge=1, le=89_478_485)
    classes: Literal["imagenet"] | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    classes_file: Path | None = None

    @model_validator(mode="after")
    def _one_list_of_classes(self) -> "ImageFolderSource":
        if self.classes and self.classes_file:
            raise ValueError("classes and classes_file are both given: give one")
        _check_classes(self.classes if isinstance(self.classes, tuple) else (), "classes")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return *self.image_size, self.channels

    def class_count(self) -> int | None:
        """The length of `classes` or `classes_file`; None when the folders must tell.

        Raises:
            DataError: when `classes_file` cannot be used.
        """
        if self.classes == "imagenet":
            return IMAGENET_CLASSES
        listed = self._listed_classes()
        return len(listed) if listed else None

    def load(self, split: Split) -> ImageSet:
        """The images of one split, float32 [n, height, width, channels]; ids are `CLASS/FILE`.

        All headers are checked, then every file is decoded once and let go. That is paid twice (some 4 ms for a
        photograph), and a damaged file is refused before a model has been trained on the ones before it.

        Raises:
            DataError: when a folder, class or file is missing or refused; it is named. With `classes: imagenet` also
                when the list of their ids is neither on this machine nor to be had.
        """
        root = _root(self.directory.expanduser())
        folders = {name: _class_folders(root, name) for name in get_args(Split)}
        chosen = folders[split]
        if chosen is None:
            raise DataError(f"{root}: there is no folder {split}/ with one folder a class in it")
        class_names = self._class_names(root, folders)
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(class_names):
            files = _image_files(root, chosen[name]) if name in chosen else []
            paths.extend(files)
            labels.extend([label] * len(files))
        read = partial(decode, shape=self.image_shape, resize=self.resize, max_pixels=self.max_pixels)
        _refuse_any(_problem(path, partial(check_header, max_pixels=self.max_pixels)) for path in paths)
        with ThreadPoolExecutor(THREADS) as threads:
            for start in range(0, len(paths), FILES_PER_ROUND):
                _refuse_any(threads.map(lambda path: _problem(path, read), paths[start : start + FILES_PER_ROUND]))
        index = pd.DataFrame({"image_id": [f"{path.parent.name}/{path.name}" for path in paths], "label": labels})
        pixels = _FilePixels(tuple(paths), self.image_shape, read)
        return ImageSet(pixels, index, class_names, f"{root.name}/{split}_set")

    def _listed_classes(self) -> tuple[str, ...]:
        if self.classes == "imagenet":
            return _imagenet_classes()
        if self.classes_file is None:
            return self.classes or ()
        try:
            lines = self.classes_file.expanduser().read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"classes_file {self.classes_file} cannot be read: {error}") from error
        names = tuple(line.strip() for line in lines)
        _check_classes(names, f"classes_file {self.classes_file}")
        if not names:
            raise DataError(f"classes_file {self.classes_file} names no class")
        return names

    def _class_names(self, root: Path, folders: dict[Split, dict[str, Path] | None]) -> tuple[str, ...]:
        """The one list of classes, checked against the folders of both splits."""
        first = "testing" if folders["training"] is None else "training"
        listed = self._listed_classes()
        names = listed or tuple(sorted(folders[first] or (), key=_natural))
        for split, found in folders.items():
            if found is None:
                continue
            if not found:
                raise DataError(f"{root / split}: holds no class folder")
            unknown = sorted(set(found) - set(names), key=_natural)
            if unknown:
                where = "the list of classes" if listed else f"{first}/"
                raise DataError(f"{found[unknown[0]]}: class {unknown[0]!r} is not in {where}, which gives the labels")
            absent = sorted(set(names) - set(found), key=_natural)
            if absent and not listed:
                raise DataError(
                    f"{root / split}: class {absent[0]!r} of {first}/ has no folder; add its images, or list the "
                    "classes under `classes` if some are meant to have none"
                )
        return names


@dataclass(frozen=True)
class _FilePixels:
    """Image files, decoded a range at a time."""

    paths: tuple[Path, ...]
    image_shape: tuple[int, int, int]
    read: Callable[[Path], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.paths), *self.image_shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        paths = self.paths[rows]
        images = np.empty((len(paths), *self.image_shape), np.uint8)
        with ThreadPoolExecutor(THREADS) as threads:
            for row, image in enumerate(threads.map(self.read, paths)):
                images[row] = image
        return to_float(images)


def _root(directory: Path) -> Path:
    """The folder itself; a relative one may stand among the data of this machine."""
    if directory.is_absolute() or directory.is_dir():
        return directory.resolve()
    found = None if ".." in directory.parts else local_data(str(directory))
    if found is None:
        raise DataError(
            f"{directory}: is no folder of {Path.cwd()}, nor of the data that the environment variable"
            f" {DATA_VARIABLE} names; give `directory` in full, or set the variable to the folder that holds it"
        )
    for path in (found, *found.parents[: len(directory.parts) - 1]):
        if path.is_symlink():
            raise DataError(f"{path}: is a link; give `directory` in full where the images stand elsewhere")
    return found.resolve()


def _imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids of the 1,000 classes, in the order of the pretrained models' labels."""
    folder = local_data("imagenet")
    path = folder / CLASS_INDEX if folder else None
    if path is None or not path.is_file():
        path = _download_class_index()
    try:
        positions = json.loads(path.read_text("utf-8"))
        names = tuple(str(positions[str(position)][0]) for position in range(IMAGENET_CLASSES))
        _check_classes(names, str(path))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as {CLASS_INDEX} ({type(error).__name__}: {error})") from error
    return names


def _download_class_index() -> Path:
    """The file in the user's cache, fetched when it is not there whole; a broken download leaves nothing behind."""
    import platformdirs
    import pooch

    cache = platformdirs.user_cache_path("dioptra-assets") / "imagenet"
    try:
        path = pooch.retrieve(
            CLASS_INDEX_URL,
            known_hash=f"md5:{CLASS_INDEX_MD5}",
            fname=CLASS_INDEX,
            path=cache,
            downloader=pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS),  # pyright: ignore[reportArgumentType]
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; pooch raises ValueError on a wrong hash
        why = " ".join(str(error).split())[:160]
        raise DataError(
            f"{CLASS_INDEX}, the classes of ImageNet, could not be fetched to {cache} from {CLASS_INDEX_URL}"
            f" ({type(error).__name__}: {why}): put the file into imagenet/ of the folder that the environment variable"
            f" {DATA_VARIABLE} names, or list the ids of the classes under `classes`"
        ) from error
    return Path(path)


def _check_classes(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name.startswith(".") or "/" in name or name in seen:
            why = "stands twice" if name in seen else "cannot be a class folder"
            raise DataError(f"{where}: class {name!r} {why}")
        seen.add(name)


def _natural(name: str) -> tuple[list[str | int], str]:
    """A sort key in which numbers count as numbers; the name itself keeps "1" and "01" apart."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if odd % 2 else part for odd, part in enumerate(parts)], name


def _entries(root: Path, folder: Path) -> list[Path]:
    """What a folder holds in natural order, names with a leading dot left out, links that leave `root` refused."""
    try:
        found = sorted(
            (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda p: _natural(p.name)
        )
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error}") from error
    for path in found:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in path.name):
            raise DataError(f"{str(path)!a}: rename it, its name holds control characters or is not UTF-8")
        _check_link(root, path)
    return found


def _check_link(root: Path, path: Path) -> None:
    if not path.is_symlink():
        return
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop is a RuntimeError up to Python 3.12
        raise DataError(f"{path}: is a link that leads nowhere") from error
    if not target.is_relative_to(root):
        raise DataError(f"{path}: is a link that leaves {root}; copy what it points to instead")


def _class_folders(root: Path, split: Split) -> dict[str, Path] | None:
    """The class folders of a split by name, or None where the split is not there."""
    folder = root / split
    _check_link(root, folder)
    if not folder.is_dir():
        return None
    entries = _entries(root, folder)
    for path in entries:
        if not path.is_dir():
            raise DataError(f"{path}: is not a class folder; images stand in {split}/CLASS/")
    return {path.name: path for path in entries}


def _image_files(root: Path, folder: Path) -> list[Path]:
    files = _entries(root, folder)
    if not files:
        raise DataError(f"{folder}: class {folder.name!r} is empty")
    for path in files:
        if not path.is_file():
            raise DataError(f"{path}: is not a regular file; a class folder holds images only")
    return files


def _problem(path: Path, read: Callable[[Path], object]) -> str | None:
    try:
        read(path)
    except DataError as error:
        return str(error)
    return None


def _refuse_any(problems: Iterable[str | None]) -> None:
    """Say the first few of them at once: mending a large folder one file a run takes days."""
    found = [problem for problem in problems if problem]
    if found:
        more = f"; and {len(found) - FILES_PER_ERROR} more files" if len(found) > FILES_PER_ERROR else ""
        raise DataError("; ".join(found[:FILES_PER_ERROR]) + more)
