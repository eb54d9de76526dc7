"""Photographs in folders, one folder a class: `training/CLASS/*` and `testing/CLASS/*`."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, model_validator

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
from dioptra_assets.robustness.training.architectures import IMAGENET_CLASSES

# Few, because each may hold an image of `max_pixels`.
THREADS = 4
FILES_PER_ROUND = 1000
FILES_PER_ERROR = 10
Filter = Literal["nearest", "bilinear", "bicubic"]
# The 1,000 classes of ILSVRC 2012 (Russakovsky et al. 2015, arXiv 1409.0575): WordNet id and name, in the order of the
# ids, which is that of the labels of every pretrained model.
IMAGENET_CLASS_FILE = "imagenet_classes.tsv"


class ShortSide(BaseModel, frozen=True, extra="forbid"):
    """The short side is brought to a length, and the middle is cut out: what published ImageNet numbers are made with.

    As in torchvision's evaluation presets (`Resize(256)`, `CenterCrop(224)`).

    Attributes:
        short_side: length of the shorter side in pixels, before the cut.
        crop: height and width of the cut, in pixels.
        filter: of Pillow; `bilinear` and `bicubic` smooth before they shrink.
    """

    short_side: Side
    crop: Side
    filter: Filter = "bilinear"


class ImageFolderSource(DataSource, frozen=True):
    """PNG and JPEG files in `training/CLASS/*` and `testing/CLASS/*`, decoded as they are read.

    One list of classes gives the labels of both splits: `classes` or `classes_file` where given, in that order, else
    the class folders of `training` (of `testing` where there is no `training`) in natural order, "2" before "10".

    Files count by content, whatever they are called. Names that start with a dot are passed over; anything else that is
    no PNG or JPEG is refused by name, and so is one that was cut off before its end. Pictures are turned as their EXIF
    orientation says, become grey (ITU-R 601) or RGB, CMYK too, and are brought to `image_size`; colour profiles are not
    applied. Refused: 16 bits a channel, animated PNG, and pixels that show through, because no one said what is behind
    them. Of a JPEG with several pictures the first is taken. A hard link is a file like any other.

    Attributes:
        directory: the folder that holds `training`, `testing` or both. No link in them may leave it. A relative path is
            looked for in the working directory, then in the folder that DIOPTRA_ASSETS_DATA names.
        image_size: (height, width) in pixels.
        channels: 1 for grey, 3 for RGB.
        resize: the filter of Pillow that stretches to `image_size`; `bilinear` and `bicubic` smooth before they shrink.
            `{short_side: 256, crop: 224}` keeps the proportions and cuts out the middle.
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
    resize: Filter | ShortSide = "bilinear"
    max_pixels: int = Field(default=50_000_000, ge=1, le=89_478_485)
    classes: Literal["imagenet"] | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    classes_file: Path | None = None

    @model_validator(mode="after")
    def _one_list_of_classes(self) -> "ImageFolderSource":
        if self.classes and self.classes_file:
            raise ValueError("classes and classes_file are both given: give one")
        _check_classes(self.classes if isinstance(self.classes, tuple) else (), "classes")
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> "ImageFolderSource":
        resize = self.resize
        if isinstance(resize, ShortSide):
            if resize.crop > resize.short_side:
                raise ValueError(f"crop {resize.crop} does not fit into short_side {resize.short_side}")
            if self.image_size != (resize.crop, resize.crop):
                raise ValueError(f"image_size {list(self.image_size)} is not that of the crop, {[resize.crop] * 2}")
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
            DataError: when a folder, class or file is missing or refused; it is named.
        """
        root = _root(self.directory.expanduser())
        folders = {name: _class_folders(root, name) for name in get_args(Split)}
        chosen = folders[split]
        if chosen is None:
            raise DataError(f"{root}: there is no folder {split}/ with one folder per class in it")
        class_names = self._class_names(root, folders)
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(class_names):
            files = _image_files(root, chosen[name]) if name in chosen else []
            paths.extend(files)
            labels.extend([label] * len(files))
        resize = self.resize if isinstance(self.resize, str) else self.resize.filter
        short_side = None if isinstance(self.resize, str) else self.resize.short_side
        read = partial(decode, shape=self.image_shape, resize=resize, short_side=short_side, max_pixels=self.max_pixels)
        _refuse_any(_problem(path, partial(check_header, max_pixels=self.max_pixels)) for path in paths)
        with ThreadPoolExecutor(THREADS) as threads:
            for start in range(0, len(paths), FILES_PER_ROUND):
                _refuse_any(threads.map(lambda path: _problem(path, read), paths[start : start + FILES_PER_ROUND]))
        index = pd.DataFrame({"image_id": [f"{path.parent.name}/{path.name}" for path in paths], "label": labels})
        pixels = _FilePixels(tuple(paths), self.image_shape, read)
        return ImageSet(pixels, index, class_names, f"{root.name}/{split}_set")

    def _listed_classes(self) -> tuple[str, ...]:
        if self.classes == "imagenet":
            return imagenet_classes()
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
            f"{directory}: is not a folder in {Path.cwd()}, nor in the data folder that the environment variable"
            f" {DATA_VARIABLE} names; give `directory` in full, or set the variable to the folder that holds it"
        )
    for path in (found, *found.parents[: len(directory.parts) - 1]):
        if path.is_symlink():
            raise DataError(f"{path}: is a link; give `directory` in full where the images stand elsewhere")
    return found.resolve()


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids of the 1,000 classes, in the order of the pretrained models' labels."""
    text = resources.files("dioptra_assets.robustness.data").joinpath(IMAGENET_CLASS_FILE).read_text("utf-8")
    return tuple(line.partition("\t")[0] for line in text.splitlines())


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
            raise DataError(f"{path}: is not a class folder; images belong in {split}/CLASS/")
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
