"""Image sets in the store: pixels as a sharded zarr array, ids, labels and provenance as Parquet beside it.

Pixels are stored without loss, in chunks of about a megabyte with a checksum each, packed in shards of about 64 MB, so
that writing and reading cost memory for one shard and not for the set. Nothing stored is code.

Why: docs/decisions/0005-image-sets-are-zarr.md
"""

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import zarr
from cachetools import LRUCache, cached
from zarr.codecs import ZstdCodec
from zarr.core.sync import sync
from zarr.storage import MemoryStore, ObjectStore

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import ImageBatch, ImageSet, check_index
from resources.store import Cell, DamagedCellError, Destination, StoredCell, StoreError, damage
from resources.tables import from_parquet, packed

# Of its types some name no arguments.
_ZARR: Any = zarr
KIND = "image_set"
PIXELS = "pixels"
INDEX = "index.parquet"
CHUNK_BYTES = 1 << 20
SHARD_BYTES = 64 << 20
# Memory for sets that many cells read: enough for the testing set of MNIST.
KEPT_BYTES = 64 << 20


def write_image_set(
    destination: Destination,
    batches: Iterable[ImageBatch],
    *,
    n: int,
    image_shape: tuple[int, int, int],
    class_names: tuple[str, ...],
    attributes: Mapping[str, Any] | None = None,
) -> StoredCell:
    """Store `n` images that arrive in batches; memory is bounded by a shard.

    Args:
        destination: where the set is written.
        batches: float32 images in [0, 1] with their index rows, `n` in all.
        n: how many images there must be.
        image_shape: (height, width, channels).
        class_names: the classes that the labels point into.
        attributes: further JSON facts for readers.

    Returns:
        The set that is served now. Its data version is the hash of pixels, index, class names and, where the
        attributes have one, of the seed, which every table of its numbers repeats.

    Raises:
        NonFiniteError: when a pixel is NaN or infinite, naming its image.
        ValueError: when a pixel lies outside [0, 1], the set is empty, or batches, index, shape and `n` do not agree.
    """
    cell = destination.cell
    if n < 1:
        raise ValueError(f"{cell}: no images to store, there must be one at least")
    digest = hashlib.sha256(json.dumps([n, image_shape, class_names]).encode())
    index_parts: list[pd.DataFrame] = []
    with destination.writer(KIND) as writer:
        pixels = _ShardWriter(n, image_shape, writer.put)
        for batch in batches:
            images = np.ascontiguousarray(batch.images, np.float32)
            _check_batch(images, batch.index, image_shape, cell)
            digest.update(images.tobytes())
            pixels.append(images)
            index_parts.append(batch.index)
        pixels.close(cell)
        index = pd.concat(index_parts, ignore_index=True)
        check_index(index, class_names, str(cell))
        content, version = packed(index)
        digest.update(version.encode())
        writer.put(INDEX, content)
        if (seed := (attributes or {}).get("seed")) is not None:
            digest.update(f"seed {seed}".encode())
        facts = {"n": n, "image_shape": list(image_shape), "class_names": list(class_names), **(attributes or {})}
        return writer.commit(digest.hexdigest(), facts)


def read_image_set(stored: StoredCell) -> ImageSet:
    """The set of a cell, lazily: its index is read now, its pixels when they are asked for."""
    class_names = tuple(stored.manifest.attributes["class_names"])
    return ImageSet(StoredPixels(stored), from_parquet(stored.read(INDEX)), class_names, str(stored.cell))


def read_often(stored: StoredCell) -> ImageSet:
    """The set of a cell that other cells need too. A process reads a small set once and keeps it in memory.

    A version never changes, so what is held is what is stored. Its pixels cannot be written to.
    """
    facts = stored.manifest.attributes
    if 4 * math.prod((facts["n"], *facts["image_shape"])) > KEPT_BYTES:
        return read_image_set(stored)
    kept = _kept(stored)
    return replace(kept, index=kept.index.copy(deep=False))


def _place(stored: StoredCell) -> tuple[str, str]:
    return stored.store.url, stored.prefix


def _bytes(image_set: ImageSet) -> int:
    return 4 * math.prod(image_set.pixels.shape)


@cached(LRUCache[tuple[str, str], ImageSet](KEPT_BYTES, _bytes), key=_place, lock=threading.Lock())
def _kept(stored: StoredCell) -> ImageSet:
    image_set = read_image_set(stored)
    images, _ = image_set.to_numpy()
    images.flags.writeable = False
    return replace(image_set, pixels=images)


class StoredPixels:
    """Pixels that are read from the store range by range, each chunk verified by its checksum.

    Reading raises DamagedCellError, naming the file, or StoreError where the store cannot be reached.
    """

    def __init__(self, stored: StoredCell):
        self._stored = stored
        facts = stored.manifest.attributes
        self.shape: tuple[int, ...] = (facts["n"], *facts["image_shape"])
        # Chunks carry checksums; the file that says how to decode them does not.
        stored.read(f"{PIXELS}/zarr.json")
        objects = stored.store.open_prefix(f"{stored.prefix}/{PIXELS}")
        read_only = ObjectStore(objects, read_only=True)
        self._array: zarr.Array[Any] = _ZARR.open_array(store=read_only, mode="r", zarr_format=3)
        if self._array.shape != self.shape or self._array.dtype != np.float32:
            fault = f"holds {self._array.dtype} of shape {self._array.shape}, not float32 of {self.shape}"
            raise DamagedCellError(damage(stored.cell, f"{stored.prefix}/{PIXELS}", fault))

    def __getitem__(self, rows: slice) -> np.ndarray:
        try:
            images = np.asarray(self._array[rows])
        except Exception as error:
            raise self._failure(rows, str(error)) from error
        # A shard that disappears after the set was opened reads as the fill value, which no stored pixel has.
        if np.isnan(images).any():
            raise self._failure(rows, "a shard was not there")
        return images

    def _failure(self, rows: slice, what: str) -> Exception:
        """What went wrong with a range: the first shard of it that is damaged, or else the store."""
        start, stop, _ = rows.indices(self.shape[0])
        per_shard = (self._array.shards or self._array.chunks)[0]
        for shard in range(start // per_shard, -(-stop // per_shard)):
            try:
                self._stored.read(f"{PIXELS}/c/{shard}/0/0/0")
            except DamagedCellError as error:
                return error
        return StoreError(f"cannot read images {start} to {stop} of {self._stored.prefix}: {what}")


class _ShardWriter:
    """Encodes whole shards in memory and hands each to `put`, so that every byte stored has passed the manifest."""

    def __init__(self, n: int, image_shape: tuple[int, int, int], put: Callable[[str, bytes], None]):
        image_bytes = int(np.prod(image_shape)) * 4
        per_chunk = max(1, CHUNK_BYTES // image_bytes)
        per_shard = per_chunk * max(1, min(SHARD_BYTES // (per_chunk * image_bytes), -(-n // per_chunk)))
        self._put = put
        self._memory: dict[str, Any] = {}
        self._store = MemoryStore(self._memory)
        self._array: zarr.Array[Any] = _ZARR.create_array(
            store=self._store,
            shape=(n, *image_shape),
            chunks=(per_chunk, *image_shape),
            shards=(per_shard, *image_shape),
            dtype="float32",
            compressors=[ZstdCodec(level=1, checksum=True)],
            fill_value=np.nan,
            config={"write_empty_chunks": True},
        )
        self._buffer = np.empty((per_shard, *image_shape), np.float32)
        self._filled = 0
        self._written = 0
        self._drain()

    def append(self, images: np.ndarray) -> None:
        while len(images):
            taken = min(len(images), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = images[:taken]
            self._filled += taken
            images = images[taken:]
            if self._filled == len(self._buffer):
                self._flush()

    def close(self, cell: Cell) -> None:
        self._flush()
        if self._written != self._array.shape[0]:
            raise ValueError(f"{cell}: {self._written} images came for a set of {self._array.shape[0]}")

    def _flush(self) -> None:
        if not self._filled:
            return
        rows = slice(self._written, min(self._written + self._filled, self._array.shape[0]))
        self._array[rows] = self._buffer[: rows.stop - rows.start]
        self._written += self._filled
        self._filled = 0
        self._drain()

    def _drain(self) -> None:
        for name in list(self._memory):
            if name != "zarr.json" or self._written == 0:
                self._put(f"{PIXELS}/{name}", self._memory[name].to_bytes())
            if name != "zarr.json":
                sync(self._store.delete(name))


def _check_batch(images: np.ndarray, index: pd.DataFrame, image_shape: tuple[int, int, int], cell: Cell) -> None:
    if images.shape != (len(index), *image_shape):
        raise ValueError(
            f"{cell}: a batch of shape {images.shape} came with {len(index)} rows of index for images of {image_shape}"
        )
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        names = ", ".join(index["image_id"].to_numpy(str)[~finite][:3])
        raise NonFiniteError(f"{cell}: {np.sum(~finite)} images have non-finite pixels, first {names}")
    inside = (images >= 0).all() and (images <= 1).all()
    if not inside:
        raise ValueError(f"{cell}: pixels reach from {images.min()} to {images.max()}, allowed is [0, 1]")
