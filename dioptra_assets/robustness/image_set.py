"""An image set: labelled images that are read a batch at a time.

Pixels are float32 in [0, 1], laid out [image, row, column, channel]. Where the pixels come from (a store, a folder of
photographs, an array) is hidden behind :class:`Pixels`, so a set of 30 GB and a set of ten images are used alike.
"""

import base64
import importlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import tensorflow as tf

DEFAULT_BATCH_SIZE = 256
# Bytes of images that a store reads together, see `resources.image_store`.
READ_AT_ONCE = 2**20
# How large a notebook shows a grid of small images, and one of them, in pixels.
SHOWN_WIDTH, SHOWN_HEIGHT = 700, 84


class Pixels(Protocol):
    """Whatever can give a range of images: a numpy array, a stored array, a folder decoded on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, height, width, channels]."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """The images of `rows`, float32 [rows, height, width, channels]."""
        ...


@dataclass(frozen=True)
class ImageBatch:
    """Some consecutive rows of an image set.

    Attributes:
        images: float32 [rows, height, width, channels] in [0, 1].
        index: one row per image, with at least the columns `image_id` and `label`.
    """

    images: np.ndarray
    index: pd.DataFrame

    @property
    def labels(self) -> np.ndarray:
        """int64 [rows], positions in the class names of the set."""
        return self.index["label"].to_numpy(np.int64)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, lazily read.

    Attributes:
        pixels: the images.
        index: one row per image: `image_id` (str, unique), `label` (int, position in `class_names`), and any columns of
            provenance, in the order of the pixels.
        class_names: the classes, in the order that gives the labels their meaning.
        name: what errors and pictures call this set, e.g. `digits/testing_set`.

    Raises:
        ValueError: when pixels, index and class names do not fit together.
    """

    pixels: Pixels
    index: pd.DataFrame
    class_names: tuple[str, ...]
    name: str = "image set"

    def __post_init__(self) -> None:
        if len(self.pixels.shape) != 4:
            raise ValueError(f"{self.name}: pixels must be [n, height, width, channels], got shape {self.pixels.shape}")
        check_index(self.index, self.class_names, self.name)
        if self.pixels.shape[0] != len(self.index):
            raise ValueError(f"{self.name}: {self.pixels.shape[0]} images but {len(self.index)} rows in the index")

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        *,
        image_ids: Sequence[str] | None = None,
        name: str = "image set",
    ) -> "ImageSet":
        """A set held in memory: float32 images [n, height, width, channels] in [0, 1] and their labels."""
        ids = list(image_ids) if image_ids is not None else [f"{i:06d}" for i in range(len(images))]
        index = pd.DataFrame({"image_id": ids, "label": np.asarray(labels, dtype=np.int64)})
        return cls(np.asarray(images, dtype=np.float32), index, tuple(class_names), name)

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        _, height, width, channels = self.pixels.shape
        return height, width, channels

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]."""
        return self.index["label"].to_numpy(np.int64)

    def batches(self, batch_size: int = DEFAULT_BATCH_SIZE) -> Iterator[ImageBatch]:
        """Every image once, in order, `batch_size` at a time; the last batch may be smaller.

        Raises:
            ValueError: when `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"{self.name}: batch_size is {batch_size}, it must be at least 1")
        for start in range(0, len(self), batch_size):
            rows = slice(start, min(start + batch_size, len(self)))
            yield ImageBatch(self.pixels[rows], self.index.iloc[rows].reset_index(drop=True))

    def __getitem__(self, rows: Any) -> Any:
        """One image by its position, or the set of some rows by a slice, positions or a Boolean mask.

        Returns:
            For an integer the image, float32 [height, width, channels]; else an image set, read lazily.

        Raises:
            IndexError: for anything else, and for a row that there is not, or that is asked for twice.
        """
        if isinstance(rows, slice):
            return self._of(np.arange(len(self))[rows])
        if isinstance(rows, tuple) or (np.ndim(rows) == 0 and not np.issubdtype(np.asarray(rows).dtype, np.integer)):
            raise IndexError(f"{self.name}: {rows!r} is not a row; for pixels use `np.asarray(image_set)[...]`")
        if np.ndim(rows) == 0:
            return self.images([rows])[0]
        positions = self._positions(rows)
        if len(np.unique(positions)) < len(positions):
            raise IndexError(
                f"{self.name}: a row is given twice, a set holds each row once; use `images(rows)` to repeat rows"
            )
        return self._of(positions)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every image in order, float32 [height, width, channels], read a batch at a time."""
        return (image for batch in self.batches() for image in batch.images)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images, for numpy: float32 [n, height, width, channels]."""
        if copy is False and not isinstance(self.pixels, np.ndarray):
            raise ValueError(f"{self.name}: the images are read from where they are kept, which is a copy")
        images = self.to_numpy()[0]
        return images.astype(dtype or np.float32, copy=bool(copy))

    def where(self, **columns: Any) -> "ImageSet":
        """The rows whose columns have the given values: `where(label=3)`, `where(label="dog", split="validation")`.

        Args:
            columns: column of the index -> its value, or a list of values. A label may be given as its class name.

        Raises:
            LookupError: for a column or class name that there is not, naming those that there are.
        """
        kept = np.ones(len(self), bool)
        for column, wanted in columns.items():
            if column not in self.index:
                raise LookupError(f"{self.name} has no column {column!r}, available: {', '.join(map(str, self.index))}")
            values = list(wanted) if isinstance(wanted, list | tuple | set | np.ndarray) else [wanted]
            if column == "label":
                values = [self._label(value) for value in values]
            kept &= self.index[column].isin(values).to_numpy(bool)
        return self[kept]

    def images(self, rows: Sequence[int] | Sequence[bool] | np.ndarray | pd.Series) -> np.ndarray:
        """The images of some rows, in the order asked for: float32 [rows, height, width, channels].

        Args:
            rows: positions, negative ones from the end, or one Boolean an image.

        Raises:
            IndexError: for a position that there is not, a mask of another length, or what is neither.
        """
        return read_rows(self.pixels, self._positions(rows))

    def _positions(self, rows: Any) -> np.ndarray:
        """Rows as positions from the start, int64."""
        given = np.asarray(rows)
        if given.ndim != 1:
            raise IndexError(f"{self.name}: rows have {given.ndim} dimensions, give a list of positions or a mask")
        if given.dtype == bool:
            if len(given) != len(self):
                raise IndexError(f"{self.name}: a mask of {len(given)} for {len(self)} images")
            return np.flatnonzero(given)
        if len(given) == 0:
            return np.empty(0, np.int64)
        if not np.issubdtype(given.dtype, np.integer):
            raise IndexError(f"{self.name}: rows are {given.dtype}, give whole numbers or a Boolean mask")
        low, high = int(given.min()), int(given.max())
        if low < -len(self) or high >= len(self):
            wrong = low if low < -len(self) else high
            raise IndexError(f"{self.name}: there is no row {wrong}, the set has {len(self)} rows")
        return np.where(given < 0, given + len(self), given).astype(np.int64)

    def _of(self, positions: np.ndarray) -> "ImageSet":
        index = self.index.iloc[positions].reset_index(drop=True)
        return replace(self, pixels=_Rows(self.pixels, positions), index=index)

    def _label(self, value: Any) -> int:
        if isinstance(value, str):
            if value not in self.class_names:
                near = ", ".join(self.class_names[:20]) + " ..." * (len(self.class_names) > 20)
                raise LookupError(f"{self.name} has no class {value!r}, available: {near}")
            return self.class_names.index(value)
        return int(value)

    def to_numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """All images and labels in memory: float32 [n, height, width, channels] and int64 [n]."""
        return np.asarray(self.pixels[slice(0, len(self))], np.float32), self.labels

    def to_pandas(self) -> pd.DataFrame:
        """The index: `image_id`, `label`, `class_name` and the columns of provenance."""
        frame = self.index.copy()
        frame.insert(2, "class_name", [self.class_names[label] for label in frame["label"]])
        return frame

    def to_tf_data(self, batch_size: int = DEFAULT_BATCH_SIZE) -> "tf.data.Dataset":
        """A `tf.data.Dataset` of (images, labels) batches, read lazily."""
        import tensorflow as tf

        signature = (
            tf.TensorSpec((None, *self.image_shape), tf.float32),  # pyright: ignore[reportArgumentType, reportCallIssue]
            tf.TensorSpec((None,), tf.int64),  # pyright: ignore[reportArgumentType, reportCallIssue]
        )
        return tf.data.Dataset.from_generator(
            lambda: ((batch.images, batch.labels) for batch in self.batches(batch_size)), output_signature=signature
        )

    def to_torch(self) -> Any:
        """A `torch.utils.data.Dataset` of (image, label), read lazily: float32 [channels, height, width] and int.

        Raises:
            ModuleNotFoundError: where PyTorch is not installed.
        """
        try:
            torch = importlib.import_module("torch")
            data = importlib.import_module("torch.utils.data")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{self.name}: PyTorch is not installed, and nothing else needs it: pip install torch"
            ) from error
        source, labels = self, self.labels

        class Images(data.Dataset):
            """The images of a set, channels first."""

            def __len__(self) -> int:
                return len(source)

            def __getitem__(self, row: int) -> tuple[Any, int]:
                image = np.ascontiguousarray(np.moveaxis(source[int(row)], -1, 0))
                return torch.from_numpy(image), int(labels[int(row)])

        return Images()

    def export_png(self, folder: str | Path) -> Path:
        """Write `folder/CLASS/IMAGE_ID.png` and `folder/index.csv`, pixels rounded to 8 bits and never stretched.

        The column `file` of `index.csv` says which image is where: characters that a file name cannot have stand as in
        a URL (`%2F` for a slash), and an id that begins with its class and a slash goes without them.

        Raises:
            FileExistsError: when `folder` already holds anything.
        """
        target = Path(folder)
        if target.exists() and any(target.iterdir()):
            raise FileExistsError(f"{target} is not empty: export {self.name} to a new folder")
        target.mkdir(parents=True, exist_ok=True)
        for path, content in self._exported_files():
            (target / path).parent.mkdir(exist_ok=True)
            (target / path).write_bytes(content)
        return target

    def export_tar(self, path: str | Path) -> Path:
        """Write the PNG folder as one gzipped tar. The same set gives the same bytes."""
        import gzip

        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        try:
            with (
                partial.open("wb") as raw,
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=1, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w") as tar,
            ):
                for name, content in self._exported_files():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
            return partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _exported_files(self) -> Iterator[tuple[str, bytes]]:
        """Every file of an export, one image in memory at a time."""
        index = self.to_pandas()
        paths = _export_paths(index["class_name"], index["image_id"])
        for number, image in enumerate(image for batch in self.batches() for image in batch.images):
            yield paths[number], encode_png(image)
        yield "index.csv", index.assign(file=paths).to_csv(index=False).encode()

    def _repr_html_(self) -> str:
        """How a notebook shows the set: what it is, its classes, and a grid of its first images of every class."""
        counts = self.index["label"].value_counts().sort_index()
        classes = ", ".join(
            f"{escape(self.class_names[label])} ({count:,})"
            for label, count in zip(counts.index.tolist()[:20], counts.tolist(), strict=False)
        )
        more = f" and {len(counts) - 20} more classes" if len(counts) > 20 else ""
        height, width, channels = self.image_shape
        text = (
            f"<p><b>{escape(self.name)}</b>: {len(self):,} images of {height} x {width} x {channels}, float32 in [0, 1]"
            f"<br>{classes}{more}</p>"
        )
        if len(self) == 0:
            return text
        picture = base64.b64encode(encode_png(enlarged(self.grid(), height))).decode()
        return f'{text}<img style="image-rendering: pixelated" src="data:image/png;base64,{picture}">'

    def grid(self, columns: int = 10, rows: int = 3) -> np.ndarray:
        """One picture of up to `columns * rows` images, each class in turn, white lines between, unscaled.

        Returns:
            float32 [height, width, channels] in [0, 1].
        """
        order = self.index.assign(turn=self.index.groupby("label").cumcount()).sort_values(["turn", "label"]).index
        return tile(self.images(np.asarray(order[: columns * rows])), columns)


def check_index(index: pd.DataFrame, class_names: Sequence[str], name: str) -> None:
    """Refuse an index whose ids are not unique text or whose labels are not positions in `class_names`.

    Raises:
        ValueError: naming the set and what is wrong with its index.
    """
    missing = {"image_id", "label"} - set(index.columns)
    if missing:
        raise ValueError(f"{name}: the index has no column {sorted(missing)}")
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"{name}: two classes share a name: {list(class_names)}")
    ids = index["image_id"]
    text = ids.map(lambda image_id: isinstance(image_id, str)).to_numpy(bool)
    if not text.all():
        raise ValueError(f"{name}: image id {ids[~text].tolist()[0]!r} is not text")
    if ids.duplicated().any():
        raise ValueError(f"{name}: image id {ids[ids.duplicated()].iloc[0]!r} appears twice in the index")
    if not pd.api.types.is_integer_dtype(index["label"]) or index["label"].isna().any():
        raise ValueError(f"{name}: labels must be whole numbers, one for each image; they are {index['label'].dtype}")
    labels = index["label"].to_numpy(np.int64)
    if len(labels) and (labels.min() < 0 or labels.max() >= len(class_names)):
        raise ValueError(
            f"{name}: labels reach from {labels.min()} to {labels.max()}, but {len(class_names)} classes are named"
        )


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Pixels of [0, 1] as bytes, by rounding."""
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def encode_png(image: np.ndarray, zoom: int = 1) -> bytes:
    """One image, float [height, width, 1 or 3] in [0, 1], as PNG, each pixel repeated `zoom` times both ways."""
    from PIL import Image

    pixels = to_uint8(image)
    options: dict[str, Any] = {}
    if zoom > 1:
        pixels = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
        options["compress_level"] = 4  # pixels that repeat are packed as well in half the time
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [n, height, width, channels] side by side in rows of `columns`, one white pixel between them."""
    n, height, width, channels = images.shape
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), np.float32)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return canvas


def enlarged(picture: np.ndarray, height: int) -> np.ndarray:
    """A picture of small images, each pixel repeated so that they can be seen.

    Args:
        picture: [height, width, channels].
        height: of one of the images in it.
    """
    factor = max(1, min(SHOWN_WIDTH // max(1, picture.shape[1]), SHOWN_HEIGHT // max(1, height)))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def read_rows(pixels: Pixels, positions: np.ndarray) -> np.ndarray:
    """The images at some positions, float32.

    Rows that lie closer than what a store reads at once are read together, so every fifth image costs no more than all.
    """
    images = np.empty((len(positions), *pixels.shape[1:]), np.float32)
    if not len(positions):
        return images
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    near = max(1, READ_AT_ONCE // (4 * int(np.prod(pixels.shape[1:]))))
    for run in np.split(np.arange(len(ordered)), np.flatnonzero(np.diff(ordered) > near) + 1):
        first, last = int(ordered[run[0]]), int(ordered[run[-1]])
        images[order[run]] = pixels[slice(first, last + 1)][ordered[run] - first]
    return images


@dataclass(frozen=True)
class _Rows:
    """Some rows of other pixels."""

    pixels: Pixels
    positions: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.positions), *self.pixels.shape[1:])

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        return read_rows(self.pixels, self.positions[rows])


def _export_paths(class_names: pd.Series, image_ids: pd.Series) -> list[str]:
    """`CLASS/IMAGE_ID.png` for every image, no two alike."""
    # Ids of photographs begin with the class, which their folder says already.
    names = [
        image_id.removeprefix(f"{class_name}/") for class_name, image_id in zip(class_names, image_ids, strict=True)
    ]
    if len(set(zip(class_names, names, strict=True))) < len(names):
        names = list(image_ids)
    return [f"{_file_name(folder)}/{_file_name(name)}.png" for folder, name in zip(class_names, names, strict=True)]


def _file_name(text: str) -> str:
    """Any text as a file name; two texts never give one name."""
    reserved = text in {"", "index.csv"} or text.startswith(".")
    return "%" * reserved + "".join(
        f"%{ord(c):02X}" if c in '%/\\:*?"<>|' or ord(c) < 32 or ord(c) == 127 else c for c in text
    )
