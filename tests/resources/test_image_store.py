import os
import pickle
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import ImageBatch, ImageSet
from resources import image_store
from resources.image_store import read_image_set, read_often, write_image_set
from resources.store import Cell, CellStore, DamagedCellError, StoredCell, StoreError
from resources.tables import table_hash
from tests.resources.test_store import Bomb, snapshot

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
CELL = Cell("digits/adversarial_set", {"architecture": "le_net", "attack": "fgm_0.3"})
SHAPE = (6, 5, 3)
CLASSES = ("null", "eins", "zwei ü", "三", "<b>")


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(str(tmp_path / "store"))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 images and shards of 8, so that a set of 21 has three shards, the last of which is not full."""
    image_bytes = int(np.prod(SHAPE)) * 4
    monkeypatch.setattr(image_store, "CHUNK_BYTES", 4 * image_bytes)
    monkeypatch.setattr(image_store, "SHARD_BYTES", 8 * image_bytes)


def image_set(n: int = 21, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> ImageSet:
    rng = np.random.default_rng(seed)
    index = pd.DataFrame(
        {
            "image_id": [f"photo {i} ü" for i in range(n)],
            "label": rng.integers(0, len(CLASSES), n),
            "target_class": pd.array([None if i % 3 else i % 5 for i in range(n)], dtype="Int64"),
            "found": rng.random(n) < 0.5,
            "queries": np.arange(n, dtype=np.int64),
            "reached": pd.array([None, True, False] * n, dtype="boolean")[:n],
        }
    )
    return ImageSet(rng.random((n, *shape), dtype=np.float32), index, CLASSES, "set")


def write(store: CellStore, source: ImageSet, *, batch_size: int = 5, cell: Cell = CELL, **options: Any) -> StoredCell:
    return write_image_set(
        store.at(cell),
        source.batches(batch_size),
        n=options.pop("n", len(source)),
        image_shape=options.pop("image_shape", source.image_shape),
        class_names=source.class_names,
        **options,
    )


def shards(store: CellStore) -> list[Path]:
    return sorted(path for path in Path(store.url, CELL.path).rglob("pixels/c/*/0/0/0"))


# ---- what is written is read ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("n", [1, 4, 8, 9, 21, 24])
def test_a_set_is_read_without_loss(store: CellStore, n: int):
    source = image_set(n)
    stored = write(store, source, attributes={"attack": "fgm"})
    read = read_image_set(store.open(CELL))
    images, labels = read.to_numpy()
    assert images.dtype == np.float32
    assert images.tobytes() == source.to_numpy()[0].tobytes()
    assert (labels == source.labels).all()
    pd.testing.assert_frame_equal(read.index, source.index)
    assert read.class_names == CLASSES
    assert read.name == CELL.path
    assert stored.manifest.attributes == {
        "n": n,
        "image_shape": list(SHAPE),
        "class_names": list(CLASSES),
        "attack": "fgm",
    }


def test_the_smallest_difference_of_a_pixel_survives(store: CellStore):
    images = np.array([0, np.nextafter(np.float32(0), 1), np.float32(1e-40), 0.3, np.nextafter(np.float32(1), 0), 1])
    source = ImageSet.from_arrays(images.reshape(1, 6, 1, 1), [0], ["a"])
    write(store, source)
    assert read_image_set(store.open(CELL)).to_numpy()[0].tobytes() == source.to_numpy()[0].tobytes()


@pytest.mark.usefixtures("small_shards")
def test_any_range_of_a_stored_set_is_that_range(store: CellStore):
    source = image_set(21)
    write(store, source)
    pixels = read_image_set(store.open(CELL)).pixels
    whole = source.to_numpy()[0]

    @settings(deadline=None, max_examples=60)
    @given(st.integers(0, 21), st.integers(0, 21))
    def check(start: int, stop: int) -> None:
        assert np.array_equal(pixels[slice(start, stop)], whole[start:stop])

    check()


@pytest.mark.usefixtures("small_shards")
def test_batch_size_changes_neither_data_version_nor_any_byte(store: CellStore):
    source = image_set(21)
    first = write(store, source, batch_size=21)
    before = snapshot(Path(store.url))
    for batch_size in (1, 7, 8, 20):
        assert write(store, source, batch_size=batch_size).version == first.version
    assert snapshot(Path(store.url)) == before


def test_shards_are_no_part_of_the_data_version(store: CellStore, request: pytest.FixtureRequest):
    source = image_set(21)
    first = write(store, source, cell=Cell("whole"))
    request.getfixturevalue("small_shards")
    assert write(store, source, cell=Cell("in shards")).manifest.data_version == first.manifest.data_version


def test_the_data_version_follows_pixels_index_and_class_names(store: CellStore):
    source = image_set(21)
    images, index = source.to_numpy()[0], source.index
    other = images.copy()
    other[20, 5, 4, 2] = np.nextafter(other[20, 5, 4, 2], 2)
    relabelled = index.assign(label=[(index["label"][0] + 1) % 5, *index["label"][1:]])
    variants = [
        source,
        ImageSet(other, index, CLASSES),
        ImageSet(images, relabelled, CLASSES),
        ImageSet(images, index.assign(found=~index["found"]), CLASSES),
        ImageSet(images, index.assign(target_class=index["target_class"].fillna(0)), CLASSES),
        ImageSet(images, index.drop(columns="found"), CLASSES),
        ImageSet(images, index, (*CLASSES[:-1], "i")),
        ImageSet(images, index, (*CLASSES, "six")),
        ImageSet(images.reshape(21, 5, 6, 3), index, CLASSES),
    ]
    versions = [write(store, variant).manifest.data_version for variant in variants]
    assert len(set(versions)) == len(versions)


def test_an_index_read_back_has_the_hash_it_was_written_with(store: CellStore):
    source = image_set(21)
    write(store, source)
    assert table_hash(read_image_set(store.open(CELL)).index) == table_hash(source.index)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_pixel_is_refused_with_its_image_and_the_old_set_stays(store: CellStore, value: float):
    good = image_set(21)
    write(store, good)
    images = good.to_numpy()[0].copy()
    images[17, 2, 3, 1] = value
    with pytest.raises(
        NonFiniteError, match=rf"^{re.escape(CELL.path)}: 1 images have non-finite pixels, first photo 17 ü$"
    ):
        write(store, ImageSet(images, good.index, CLASSES))
    assert np.array_equal(read_image_set(store.open(CELL)).to_numpy()[0], good.to_numpy()[0])
    assert len(list(Path(store.url, CELL.path, "versions").iterdir())) == 1


@pytest.mark.parametrize("value", [-1e-6, np.nextafter(np.float32(1), 2), 255.0])
def test_a_pixel_outside_the_range_is_refused(store: CellStore, value: float):
    source = image_set(21)
    images = source.to_numpy()[0]
    images[17, 2, 3, 1] = value
    with pytest.raises(ValueError, match=r"pixels reach from .*allowed is \[0, 1\]"):
        write(store, ImageSet(images, source.index, CLASSES))
    assert store.find(CELL) is None


def test_bytes_are_not_taken_for_pixels(store: CellStore):
    images = np.full((2, *SHAPE), 200, np.uint8)
    with pytest.raises(ValueError, match=r"pixels reach from 200\.0 to 200\.0, allowed is \[0, 1\]"):
        write(store, ImageSet(images, image_set(2).index, CLASSES))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("n", [20, 22])
def test_more_or_fewer_images_than_announced_are_refused(store: CellStore, n: int):
    with pytest.raises(ValueError, match=rf"\d+ images came for a set of {n}"):
        write(store, image_set(21), n=n)
    assert store.find(CELL) is None


def test_a_batch_whose_index_or_shape_does_not_fit_is_refused(store: CellStore):
    source = image_set(4)
    whole = next(iter(source.batches(4)))
    short = ImageBatch(whole.images, whole.index[:3])
    grey = ImageBatch(whole.images[..., :1], whole.index)
    for batch in (short, grey):
        with pytest.raises(ValueError, match=r"a batch of shape \(4, 6, 5, [13]\) came with [34] rows of index"):
            write_image_set(store.at(CELL), [batch], n=4, image_shape=SHAPE, class_names=CLASSES)
    assert store.find(CELL) is None


def test_an_image_id_that_stands_in_two_batches_is_refused(store: CellStore):
    batch = next(iter(image_set(4).batches(4)))
    with pytest.raises(ValueError, match="image id 'photo 0 ü' appears twice"):
        write_image_set(store.at(CELL), [batch, batch], n=8, image_shape=SHAPE, class_names=CLASSES)
    assert store.find(CELL) is None


def test_a_set_without_images_is_refused(store: CellStore):
    with pytest.raises(ValueError, match=f"{CELL.path}: no images"):
        write_image_set(store.at(CELL), [], n=0, image_shape=SHAPE, class_names=CLASSES)


# ---- damage --------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int, bit: int = 0) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1 << bit
    path.write_bytes(damaged)


def read_everything(store: CellStore) -> None:
    read_image_set(store.open(CELL)).to_numpy()


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("name", ["pixels/zarr.json", "index.parquet", "pixels/c/0/0/0/0", "pixels/c/2/0/0/0"])
@pytest.mark.parametrize("how", ["deleted", "truncated", "bit flipped"])
def test_a_damaged_file_of_a_set_is_an_error_that_names_it(store: CellStore, name: str, how: str):
    stored = write(store, image_set(21))
    path = Path(store.url, stored.prefix, name)
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        flip(path, path.stat().st_size // 2)
    with pytest.raises(DamagedCellError, match=rf"is damaged: {re.escape(stored.prefix)}/{name} "):
        read_everything(store)
    with pytest.raises(DamagedCellError, match=re.escape(name)):
        store.open(CELL).verify()
    write(store, image_set(21))
    read_everything(store)


@pytest.mark.heavy
def test_every_byte_of_a_shard_counts(store: CellStore, monkeypatch: pytest.MonkeyPatch):
    """No flipped bit gives other pixels; the few that a frame does not use are still found by `verify`."""
    monkeypatch.setattr(image_store, "CHUNK_BYTES", 4 * 16)
    monkeypatch.setattr(image_store, "SHARD_BYTES", 8 * 16)
    source = image_set(21, shape=(2, 2, 1))
    stored = write(store, source)
    whole = source.to_numpy()[0]
    path = shards(store)[1]
    content = path.read_bytes()
    unnoticed = 0
    for at in range(len(content)):
        flip(path, at, at % 8)
        try:
            images = read_image_set(stored).pixels[slice(8, 16)]
        except DamagedCellError as error:
            assert "pixels/c/1/0/0/0 was altered" in str(error)
        else:
            assert np.array_equal(images, whole[8:16])
            unnoticed += 1
        with pytest.raises(DamagedCellError, match="pixels/c/1/0/0/0 was altered"):
            stored.verify()
        path.write_bytes(content)
    assert unnoticed <= 4


@pytest.mark.usefixtures("small_shards")
def test_a_store_that_cannot_be_reached_is_not_called_damage(store: CellStore, monkeypatch: pytest.MonkeyPatch):
    write(store, image_set(21))
    opened = read_image_set(store.open(CELL))

    def hang_up(*_: object) -> None:
        raise OSError("connection reset")

    monkeypatch.setattr("zarr.Array.__getitem__", hang_up)
    with pytest.raises(StoreError, match=r"cannot read images 8 to 16 of .*: connection reset"):
        _ = opened.pixels[slice(8, 16)]


@pytest.mark.usefixtures("small_shards")
def test_only_the_damaged_range_is_lost(store: CellStore):
    source = image_set(21)
    stored = write(store, source)
    flip(shards(store)[1], 20)
    pixels = read_image_set(stored).pixels
    assert np.array_equal(pixels[slice(0, 8)], source.to_numpy()[0][:8])
    assert np.array_equal(pixels[slice(16, 21)], source.to_numpy()[0][16:])
    with pytest.raises(DamagedCellError, match="pixels/c/1/0/0/0 was altered or lost"):
        _ = pixels[slice(8, 9)]


@pytest.mark.usefixtures("small_shards")
def test_a_shard_that_disappears_after_opening_is_an_error_and_not_a_blank_image(store: CellStore):
    write(store, image_set(21))
    opened = read_image_set(store.open(CELL))
    shards(store)[1].unlink()
    assert np.isfinite(opened.pixels[slice(0, 8)]).all()
    with pytest.raises(DamagedCellError, match=r"versions/\S+/pixels/c/1/0/0/0 was altered or lost"):
        _ = opened.pixels[slice(10, 12)]
    with pytest.raises(DamagedCellError, match="pixels/c/1/0/0/0 was altered or lost"):
        opened.to_numpy()


@pytest.mark.usefixtures("small_shards")
def test_a_set_is_never_decoded_in_another_way_than_it_was_written(store: CellStore):
    """A filter that unpickles, planted beside or in the place of the metadata, is not even looked at."""
    stored = write(store, image_set(21))
    sprung = Path(store.url, "sprung")
    pixels = Path(store.url, stored.prefix, "pixels")
    metadata = (
        '{"zarr_format": 2, "shape": [21, 6, 5, 3], "chunks": [21, 6, 5, 3], "dtype": "|O", "compressor": null,'
        ' "fill_value": null, "order": "C", "filters": [{"id": "pickle"}]}'
    )
    (pixels / ".zarray").write_text(metadata)
    (pixels / "0.0.0.0").write_bytes(pickle.dumps(Bomb(sprung)))
    read_everything(store)
    (pixels / "zarr.json").unlink()
    with pytest.raises(DamagedCellError, match=r"pixels/zarr\.json"):
        read_everything(store)
    # The same in a version whose digests were made to fit.
    with warnings.catch_warnings(), store.at(CELL).writer(image_store.KIND) as writer:
        warnings.simplefilter("ignore")
        writer.put("pixels/.zarray", metadata.encode())
        writer.put("pixels/0.0.0.0", pickle.dumps(Bomb(sprung)))
        writer.commit("planted", stored.manifest.attributes)
    with pytest.raises(DamagedCellError, match=r"pixels/zarr\.json was altered or lost"):
        read_everything(store)
    assert not sprung.exists()


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_writing_and_reading_a_set_takes_memory_for_shards_and_not_for_the_set(tmp_path: Path):
    """A set of 384 MB, written and read by a process that may not grow by 280 MB."""
    code = """
        import resource, sys
        import numpy as np, pandas as pd
        from dioptra_assets.robustness.image_set import ImageBatch
        from resources.store import Cell, CellStore
        from resources.image_store import read_image_set, read_often, write_image_set

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

        images = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3)).astype(np.float32) / 255

        def batches(n):
            for start in range(0, n, 64):
                ids = [str(row) for row in range(start, start + 64)]
                yield ImageBatch(images, pd.DataFrame({"image_id": ids, "label": 0}))

        def write(name, n):
            cell = Cell(name)
            write_image_set(store.at(cell), batches(n), n=n, image_shape=(64, 64, 3), class_names=("a",))
            return read_image_set(store.open(cell))

        store = CellStore(sys.argv[1])
        write("warm", 64).to_numpy()
        before = peak()
        read = 0
        for batch in write("set", 8192).batches(64):
            read += batch.images.nbytes
        print(peak() - before, read // 2**20)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    growth, size = map(int, ran.stdout.split())
    assert size == 384
    assert growth < 280


def test_batches_are_taken_one_at_a_time(store: CellStore):
    taken = 0

    def batches() -> Iterator[ImageBatch]:
        nonlocal taken
        for batch in image_set(20).batches(5):
            taken += 1
            if taken == 3:
                raise RuntimeError("the attack failed at the third batch")
            yield batch

    with pytest.raises(RuntimeError, match="third batch"):
        write_image_set(store.at(CELL), batches(), n=20, image_shape=SHAPE, class_names=CLASSES)
    assert taken == 3
    assert not any(path.is_file() for path in Path(store.url).rglob("*"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read, once a reading."""
    files: list[str] = []
    real = StoredCell.read
    monkeypatch.setattr(StoredCell, "read", lambda stored, name: (files.append(name), real(stored, name))[1])
    return files


def test_a_small_set_that_cell_after_cell_asks_for_is_read_once(store: CellStore, read: list[str]) -> None:
    made = image_set()
    write(store, made)
    first = read_often(store.open(CELL))
    assert read
    read.clear()
    for _ in range(3):
        again = read_often(store.open(CELL))
        np.testing.assert_array_equal(np.asarray(again), np.asarray(made))
        again.index["label"] = 0  # what one cell does to it, the next does not see
        pd.testing.assert_frame_equal(read_often(store.open(CELL)).index, first.index)
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(again.pixels)[0] = 0
    assert not read


def test_a_new_version_of_a_set_is_read_again(store: CellStore) -> None:
    write(store, image_set(seed=0))
    read_often(store.open(CELL))
    write(store, image_set(seed=1))
    np.testing.assert_array_equal(np.asarray(read_often(store.open(CELL))), np.asarray(image_set(seed=1)))


def test_a_large_set_is_not_held(store: CellStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, image_set())
    monkeypatch.setattr(image_store, "KEPT_BYTES", 21 * 4 * int(np.prod(SHAPE)) - 1)
    assert isinstance(read_often(store.open(CELL)).pixels, image_store.StoredPixels)
