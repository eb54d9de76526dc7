import csv
import io
import re
import sys
import tarfile
import time
import types
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dioptra_assets.robustness.image_set import ImageSet, encode_png, tile, to_uint8

pytestmark = pytest.mark.quick


class Counting:
    """Pixels that remember which ranges were asked for."""

    def __init__(self, images: np.ndarray):
        self._images = images
        self.shape = images.shape
        self.asked: list[tuple[int, int]] = []

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        self.asked.append((rows.start, rows.stop))
        return self._images[rows]


def images_of(n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 4, 3, channels), dtype=np.float32)


def image_set(n: int = 7, class_names: tuple[str, ...] = ("zero", "one"), channels: int = 1) -> ImageSet:
    labels = np.arange(n) % len(class_names)
    return ImageSet.from_arrays(images_of(n, channels), labels, class_names, name="a set")


# ---- what a set is -------------------------------------------------------------------------------------------------


def test_a_set_says_how_large_it_is():
    shown = image_set(7, channels=3)
    assert len(shown) == 7
    assert shown.image_shape == (4, 3, 3)
    assert shown.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "a set: the index has no column ['label']"),
        ({"image_id": ["a", "b", "a"]}, "a set: image id 'a' appears twice in the index"),
        ({"image_id": [1, 2, 3]}, "a set: image id 1 is not text"),
        ({"image_id": ["a", None, "c"]}, "a set: image id None is not text"),
        ({"label": [0, 2, 1]}, "a set: labels reach from 0 to 2, but 2 classes are named"),
        ({"label": [0, -1, 1]}, "a set: labels reach from -1 to 1, but 2 classes are named"),
        ({"label": [0.0, 1.0, 0.5]}, "a set: labels must be whole numbers, one for each image; they are float64"),
        (
            {"label": pd.array([0, None, 1], dtype="Int64")},
            "a set: labels must be whole numbers, one for each image; they are Int64",
        ),
    ],
)
def test_an_index_that_does_not_fit_is_refused(change: dict, message: str):
    index = pd.DataFrame({"image_id": ["a", "b", "c"], "label": [0, 1, 1]}).assign(**change)
    if change.get("label", 0) is None:
        index = index.drop(columns="label")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ImageSet(images_of(3), index, ("zero", "one"), "a set")


def test_pixels_and_class_names_that_do_not_fit_are_refused():
    index = image_set(3).index
    with pytest.raises(ValueError, match="a set: 4 images but 3 rows in the index"):
        ImageSet(images_of(4), index, ("zero", "one"), "a set")
    with pytest.raises(
        ValueError, match=r"a set: pixels must be \[n, height, width, channels\], got shape \(3, 4, 3\)"
    ):
        ImageSet(images_of(3)[..., 0], index, ("zero", "one"), "a set")
    with pytest.raises(ValueError, match="a set: two classes share a name"):
        ImageSet(images_of(3), index, ("zero", "zero"), "a set")


# ---- reading -------------------------------------------------------------------------------------------------------


@given(n=st.integers(0, 40), batch_size=st.integers(1, 50))
def test_batches_hold_every_image_once_and_in_order(n: int, batch_size: int):
    source = image_set(n)
    batches = list(source.batches(batch_size))
    assert all(len(batch.images) == len(batch.index) == len(batch.labels) for batch in batches)
    assert all(len(batch.images) == batch_size for batch in batches[:-1])
    assert [image_id for batch in batches for image_id in batch.index["image_id"]] == list(source.index["image_id"])
    images = np.concatenate([batch.images for batch in batches]) if batches else images_of(0)
    assert np.array_equal(images, source.to_numpy()[0])


def test_a_batch_size_that_would_lose_images_is_refused():
    for batch_size in (0, -3):
        with pytest.raises(ValueError, match=f"a set: batch_size is {batch_size}, it must be at least 1"):
            list(image_set().batches(batch_size))


def test_only_what_is_asked_for_is_read():
    pixels = Counting(np.zeros((40_000, 4, 3, 1), np.float32))
    index = pd.DataFrame({"image_id": [str(i) for i in range(40_000)], "label": 0})
    source = ImageSet(pixels, index, ("zero", "one"))
    next(iter(source.batches(4)))
    assert pixels.asked == [(0, 4)]
    source.images([39_998, 2, 39_999])
    assert pixels.asked[1:] == [(2, 3), (39_998, 40_000)]


def test_many_scattered_rows_cost_few_reads():
    pixels = Counting(images_of(1000))
    source = ImageSet(pixels, image_set(1000).index, ("zero", "one"))
    assert np.array_equal(source.images(np.arange(1000)[::-7]), images_of(1000)[::-7])
    assert len(pixels.asked) == 1


@given(st.lists(st.integers(0, 9), max_size=12))
def test_images_come_in_the_order_asked_for(rows: list[int]):
    assert np.array_equal(image_set(10).images(rows), images_of(10)[rows])


@pytest.mark.parametrize("rows", [[10], [0, -11], [3, 99]])
def test_a_position_that_does_not_exist_is_an_error_and_no_image_less(rows: list[int]):
    with pytest.raises(IndexError, match=r"a set: there is no row (10|-11|99), the set has 10 rows"):
        image_set(10).images(rows)
    with pytest.raises(IndexError, match=r"a set: there is no row"):
        image_set(10)[rows]


SLICES = st.builds(slice, *[st.none() | st.integers(-12, 12)] * 2, st.none() | st.integers(-3, 3).filter(bool))
POSITIONS = st.lists(st.integers(-10, 9), max_size=12)


@given(SLICES | POSITIONS | st.lists(st.booleans(), min_size=10, max_size=10) | st.integers(-10, 9), st.booleans())
def test_a_set_is_indexed_as_numpy_is(rows: Any, as_array: bool):
    rows = np.asarray(rows) if as_array and isinstance(rows, list) and rows else rows
    whole, source = images_of(10), image_set(10)
    positions = np.arange(10)[rows if not isinstance(rows, list) or rows else np.empty(0, int)]
    if not isinstance(rows, slice) and np.ndim(rows):
        assert np.array_equal(source.images(rows), whole[positions])
    if np.size(positions) > len(np.unique(positions)):
        with pytest.raises(IndexError, match=r"a row is given twice"):
            source[rows]
        return
    assert np.array_equal(np.asarray(source[rows]), whole[positions])
    if np.ndim(positions):
        some = source[rows]
        assert some.labels.tolist() == source.labels[positions].tolist()
        assert [*some.index["image_id"]] == [*source.index["image_id"].iloc[positions]]
        assert np.array_equal(np.asarray(some[::-1]), whole[positions][::-1])
        assert [image.tolist() for image in some] == whole[positions].tolist()


@pytest.mark.parametrize("rows", [1.0, [1.0], "a", None, True, (0, 1), [[0, 1]], [True, False], 10, -11, ...])
def test_what_is_no_row_is_an_index_error(rows: Any):
    with pytest.raises(IndexError, match=r"^a set: "):
        image_set(10)[rows]


def test_a_mask_gives_the_images_it_marks():
    source = image_set(10)
    assert np.array_equal(source.images(source.labels == 1), images_of(10)[source.labels == 1])
    assert np.array_equal(source.images(pd.Series(source.labels == 1)), images_of(10)[1::2])


def test_numpy_takes_a_set_for_its_images():
    source = image_set(10)
    assert np.asarray(source).shape == (10, 4, 3, 1) and np.asarray(source).dtype == np.float32
    assert np.mean(source) == images_of(10).mean()
    assert np.asarray(source, dtype=np.float64).dtype == np.float64
    copied = np.array(source)
    copied[:] = 0
    assert source[0].any()


def test_rows_are_chosen_by_what_the_index_says():
    source = image_set(10)
    assert source.where(label=1).labels.tolist() == [1] * 5
    assert [*source.where(label="one").index["image_id"]] == [*source.where(label=1).index["image_id"]]
    assert len(source.where(label=[0, 1])) == 10
    assert [*source.where(label="zero", image_id=["000002", "000003"]).index["image_id"]] == ["000002"]
    with pytest.raises(LookupError, match="a set has no class 'two', available: zero, one"):
        source.where(label="two")
    with pytest.raises(LookupError, match="a set has no column 'class', available: image_id, label"):
        source.where(**{"class": 1})


def test_torch_is_given_channels_first_and_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(ModuleNotFoundError, match=r"a set: PyTorch is not installed, .* pip install torch"):
        image_set(3).to_torch()
    torch = types.SimpleNamespace(from_numpy=lambda image: ("tensor", image))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.utils.data", types.SimpleNamespace(Dataset=object))
    images = image_set(3, channels=3).to_torch()
    (kind, image), label = images[1]
    assert (len(images), kind, label) == (3, "tensor", 1)
    assert np.array_equal(image, np.moveaxis(images_of(3, 3)[1], -1, 0)) and image.flags["C_CONTIGUOUS"]


def test_to_pandas_names_the_classes_and_keeps_the_provenance():
    source = image_set(3)
    frame = ImageSet(source.pixels, source.index.assign(found=[True, False, True]), source.class_names).to_pandas()
    assert list(frame.columns) == ["image_id", "label", "class_name", "found"]
    assert list(frame["class_name"]) == ["zero", "one", "zero"]
    assert "class_name" not in source.index


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_tf_data_gives_every_image_with_its_label_as_often_as_it_is_read(batch_size: int):
    source = image_set(7, channels=3)
    dataset = source.to_tf_data(batch_size)
    spec: Any = dataset.element_spec
    assert spec[0].shape.as_list() == [None, 4, 3, 3]
    for _ in range(2):
        read = [(images.numpy(), labels.numpy()) for images, labels in dataset]
        assert np.array_equal(np.concatenate([images for images, _ in read]), source.to_numpy()[0])
        assert np.concatenate([labels for _, labels in read]).tolist() == source.labels.tolist()
        assert read[0][0].dtype == np.float32
        assert read[0][1].dtype == np.int64


# ---- pictures ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(n=st.integers(1, 30), columns=st.integers(-1, 12), channels=st.sampled_from([1, 3]))
def test_a_tiled_picture_holds_every_image_unscaled(n: int, columns: int, channels: int):
    images = images_of(n, channels)
    picture = tile(images, columns)
    across = max(1, min(columns, n))
    rows = -(-n // across)
    assert picture.shape == (rows * 5 - 1, across * 4 - 1, channels)
    white = np.ones(picture.shape[:2], bool)
    for number, image in enumerate(images):
        top, left = (number // across) * 5, (number % across) * 4
        assert np.array_equal(picture[top : top + 4, left : left + 3], image)
        white[top : top + 4, left : left + 3] = False
    assert (picture[white] == 1).all()


def test_the_grid_shows_each_class_in_turn():
    labels = [0, 0, 0, 0, 1, 2]
    images = np.zeros((6, 1, 1, 1), np.float32) + np.arange(6).reshape(6, 1, 1, 1) / 10
    grid = ImageSet.from_arrays(images, labels, ["a", "b", "c"]).grid(columns=3, rows=2)
    assert np.allclose(grid[::2, ::2, 0], [[0.0, 0.4, 0.5], [0.1, 0.2, 0.3]])


@given(st.floats(0, 1, width=32))
def test_a_pixel_becomes_the_nearest_byte(value: float):
    byte = int(to_uint8(np.array([value], np.float32))[0])
    assert abs(byte - value * 255) <= 0.5 + 1e-4


def test_bytes_survive_the_way_there_and_back():
    every_byte = np.arange(256, dtype=np.float32) / 255
    assert to_uint8(every_byte).tolist() == list(range(256))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_neither_stretched_nor_turned(channels: int):
    image = 0.4 + images_of(1, channels)[0] / 10
    decoded = np.asarray(Image.open(io.BytesIO(encode_png(image))))
    assert np.array_equal(decoded.reshape(image.shape), np.rint(image * 255).astype(np.uint8))


# ---- the notebook --------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Collects tags and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_size_classes_and_a_picture_and_runs_no_name():
    hostile = "<script>alert(1)</script>", "\"><img src=x onerror='alert(2)'>"
    source = image_set(7, hostile)
    page = Tags(ImageSet(source.pixels, source.index, hostile, "<b>name</b>")._repr_html_())
    assert sorted(page.tags) == ["b", "br", "img", "p"]
    assert "<b>name</b>: 7 images of 4 x 3 x 1, float32 in [0, 1]" in page.text
    assert f"{hostile[0]} (4), {hostile[1]} (3)" in page.text


def test_a_notebook_shows_a_set_of_many_classes_and_a_set_of_no_image():
    many = image_set(25, tuple(f"class {number}" for number in range(25)))
    assert "class 19 (1) and 5 more classes</p>" in many._repr_html_()
    assert "0 images of 4 x 3 x 1" in image_set(0)._repr_html_()


# ---- exports -------------------------------------------------------------------------------------------------------

HOSTILE_NAMES = (
    "..",
    ".",
    "../escaped",
    "/absolute",
    "a/b",
    "a__b",
    "a%2Fb",
    "back\\slash",
    "nul\0",
    "line\nbreak",
    ".hidden",
    "",
    "index.csv",
    "C:con",
    "ü 三 😀",
    "class_1",
)


def hostile_set() -> ImageSet:
    n = len(HOSTILE_NAMES)
    images = np.random.default_rng(0).random((n * n, 2, 2, 1), dtype=np.float32)
    labels = np.repeat(np.arange(n), n)
    ids = [f"{name}{'' if label == 0 else label}" for label in range(n) for name in HOSTILE_NAMES]
    return ImageSet.from_arrays(images, labels, HOSTILE_NAMES, image_ids=ids, name="hostile")


def check_export(source: ImageSet, index: pd.DataFrame, files: dict[str, bytes]) -> None:
    """Every image once, under the file that the index names, rounded."""
    assert list(index["image_id"]) == list(source.index["image_id"])
    assert len(set(index["file"])) == len(source)
    assert set(index["file"]) == set(files)
    for file, image in zip(index["file"], source.to_numpy()[0], strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(files[file]))), np.rint(image[..., 0] * 255))


def read_index(content: bytes) -> pd.DataFrame:
    return pd.DataFrame(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_a_png_export_holds_every_image_and_no_name_leaves_the_folder(tmp_path: Path):
    source = hostile_set()
    folder = source.export_png(tmp_path / "outer" / "export")
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.resolve().is_relative_to(folder.resolve()) for path in everything)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in everything}
    index = read_index(files.pop("index.csv"))
    check_export(source, index, files)
    assert all(len(Path(file).parts) == 2 for file in files)


def members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            yield member, content.read()


def test_a_tar_export_holds_every_image_as_a_regular_file_inside_the_folder(tmp_path: Path):
    source = hostile_set()
    found = list(members(source.export_tar(tmp_path / "set.tar.gz")))
    for member, _ in found:
        assert member.isreg()
        assert not member.name.startswith("/")
        assert ".." not in Path(member.name).parts
    files = {member.name: content for member, content in found}
    assert len(files) == len(found)
    check_export(source, read_index(files.pop("index.csv")), files)


def test_plain_names_stay_as_they_are(tmp_path: Path):
    """Ids of photographs begin with their class, which the folder says already."""
    source = ImageSet.from_arrays(
        images_of(3), [0, 0, 1], ["grüne Katze", "dog"], image_ids=["grüne Katze/1 a.png", "grüne Katze/2", "3"]
    )
    assert [member.name for member, _ in members(source.export_tar(tmp_path / "set.tar.gz"))] == [
        "grüne Katze/1 a.png.png",
        "grüne Katze/2.png",
        "dog/3.png",
        "index.csv",
    ]


def test_ids_that_differ_only_by_their_class_do_not_meet_in_one_file(tmp_path: Path):
    source = ImageSet.from_arrays(images_of(2), [0, 0], ["a"], image_ids=["a/1", "1"])
    names = [member.name for member, _ in members(source.export_tar(tmp_path / "set.tar.gz"))]
    assert names == ["a/a%2F1.png", "a/1.png", "index.csv"]


def test_the_same_set_gives_the_same_archive_at_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = hostile_set()
    first = source.export_tar(tmp_path / "first.tar.gz").read_bytes()
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    second = source.export_tar(tmp_path / "another name.tar.gz").read_bytes()
    assert first == second


def test_an_archive_is_written_a_batch_at_a_time_and_whole_or_not_at_all(tmp_path: Path):
    class Failing(Counting):
        def __getitem__(self, rows: slice, /) -> np.ndarray:
            if rows.start >= 256:
                raise OSError("the disk is gone")
            return super().__getitem__(rows)

    pixels = Failing(images_of(600))
    path = tmp_path / "set.tar.gz"
    path.write_bytes(b"the archive before")
    with pytest.raises(OSError, match="the disk is gone"):
        ImageSet(pixels, image_set(600).index, ("zero", "one")).export_tar(path)
    assert pixels.asked == [(0, 256)]
    assert path.read_bytes() == b"the archive before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_holds_anything_is_not_exported_into(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is not empty: export a set to a new folder"):
        image_set().export_png(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
