import gzip
import hashlib
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dioptra_assets.robustness.data import DataError, MnistSource, Split, base, mnist
from dioptra_assets.robustness.image_set import to_uint8

pytestmark = pytest.mark.quick

# As published beside the files; the module itself checks sha256.
PUBLISHED_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
SIZES: dict[Split, int] = {"training": 30, "testing": 20}


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(SIZES[split])
    labels = np.arange(SIZES[split], dtype=np.uint8) % 10
    return generator.integers(0, 256, (SIZES[split], 28, 28), dtype=np.uint8), labels


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small files, their checksums put in the place of the published ones."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for split, files in mnist.FILES.items():
        swapped = []
        for file, array in zip(files, _arrays(split), strict=True):
            content = _idx(array)
            packed = gzip.compress(content, mtime=0)
            (folder / f"{file.name}.gz").write_bytes(packed)
            digests = hashlib.sha256(content).hexdigest(), hashlib.sha256(packed).hexdigest()
            swapped.append(mnist.IdxFile(file.name, len(content), *digests))
        monkeypatch.setitem(mnist.FILES, split, tuple(swapped))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no MNIST on this machine."""
    import platformdirs

    monkeypatch.setattr(mnist, "local_data", lambda name: None)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache" / "dioptra-assets" / "mnist"


class _Mirror:
    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                outer.requests.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def mirror(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Mirror]:
    served = _Mirror(small)
    monkeypatch.setattr(mnist, "MIRRORS", (served.address,))
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_images_and_labels_are_those_of_the_files(small: Path) -> None:
    for split in SIZES:
        images, labels = _arrays(split)
        loaded = MnistSource(directory=small).load(split)
        pixels, read_labels = loaded.to_numpy()
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(to_uint8(pixels)[..., 0], images)
        np.testing.assert_array_equal(pixels[..., 0], images.astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(read_labels, labels)
        assert list(loaded.index["image_id"][:2]) == [f"{split}-00000", f"{split}-00001"]
        assert loaded.class_names == tuple("0123456789")


def test_unpacked_files_are_read_like_packed_ones(small: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    for path in small.iterdir():
        (unpacked / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    expected, actual = (MnistSource(directory=folder).load("testing") for folder in (small, unpacked))
    np.testing.assert_array_equal(expected.to_numpy()[0], actual.to_numpy()[0])
    assert expected.index.equals(actual.index)


def test_a_limit_takes_the_first_images_of_its_own_split(small: Path) -> None:
    source = MnistSource(directory=small, limit_training=7)
    assert list(source.load("training").index["image_id"]) == [f"training-{row:05d}" for row in range(7)]
    assert len(source.load("testing")) == SIZES["testing"]


def test_images_stay_bytes_until_they_are_read(small: Path) -> None:
    pixels = MnistSource(directory=small).load("testing").pixels
    assert isinstance(pixels, base.BytePixels)
    assert pixels.bytes.dtype == np.uint8


def test_a_flipped_bit_is_refused_and_the_file_named(small: Path) -> None:
    path = small / "t10k-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[1000] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match=rf"{path}: is not t10k-images.*sha256"):
        MnistSource(directory=small).load("testing")
    assert len(MnistSource(directory=small).load("training")) == SIZES["training"]


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"\x1f\x8b" + b"\0" * 40, b"not MNIST"])
def test_a_file_that_is_something_else_is_refused_and_named(small: Path, content: bytes) -> None:
    path = small / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        MnistSource(directory=small).load("testing")


def test_a_truncated_file_is_refused_and_named(small: Path) -> None:
    path = small / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=str(path)):
        MnistSource(directory=small).load("testing")


def test_a_gzip_bomb_is_never_unpacked(small: Path) -> None:
    import tracemalloc

    path = small / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(200_000_000), compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"{path}.*longer"):
            MnistSource(directory=small).load("testing")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_named_with_the_setting_that_helps(small: Path) -> None:
    (small / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"neither train-labels.*`directory`.*DIOPTRA_ASSETS_DATA"):
        MnistSource(directory=small).load("training")


def test_the_data_variable_is_looked_in_first(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.rename(tmp_path / "mnist")
    monkeypatch.setenv(base.DATA_VARIABLE, str(tmp_path))
    assert len(MnistSource().load("testing")) == SIZES["testing"]


@pytest.mark.heavy
def test_a_download_happens_once_and_only_for_the_split_asked_for(mirror: _Mirror, cache: Path) -> None:
    assert len(MnistSource().load("testing")) == SIZES["testing"]
    assert sorted(mirror.requests) == ["/t10k-images-idx3-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"]
    MnistSource().load("testing")
    assert len(mirror.requests) == 2
    assert sorted(path.name for path in cache.iterdir()) == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]


@pytest.mark.heavy
def test_a_second_mirror_serves_when_the_first_is_down(mirror: _Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "MIRRORS", (f"{mirror.address}nowhere/", mirror.address))
    assert len(MnistSource().load("testing")) == SIZES["testing"]


@pytest.mark.heavy
def test_a_changed_download_is_refused_and_not_kept(mirror: _Mirror, small: Path, cache: Path) -> None:
    (small / "t10k-images-idx3-ubyte.gz").write_bytes(b"changed")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz of MNIST could not be fetched.*hash"):
        MnistSource().load("testing")
    assert not list(cache.iterdir())


def test_offline_one_sentence_says_what_from_where_and_which_setting(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens on port 1.
    mirrors = ("http://127.0.0.1:1/a/", "http://127.0.0.1:1/b/")
    monkeypatch.setattr(mnist, "MIRRORS", mirrors)
    with pytest.raises(DataError) as refused:
        MnistSource().load("training")
    message = str(refused.value)
    assert "\n" not in message
    for part in ("train-images-idx3-ubyte.gz", *mirrors, "`directory`", "DIOPTRA_ASSETS_DATA"):
        assert part in message


def _real() -> Path:
    folder = base.local_data("mnist")
    if folder is None:
        pytest.skip("MNIST is not on this machine")
    return folder


def test_the_real_files_are_the_published_ones() -> None:
    folder = _real()
    for file in (file for files in mnist.FILES.values() for file in files):
        path = mnist._find(folder, file)
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        assert hashlib.md5(content).hexdigest() == PUBLISHED_MD5[file.name]
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)


def test_real_mnist_loads_whole() -> None:
    _real()
    testing = MnistSource().load("testing")
    assert len(testing) == 10_000
    assert list(testing.labels[:5]) == [7, 2, 1, 0, 4]
    assert list(np.bincount(testing.labels)) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    training = MnistSource().load("training")
    assert len(training) == 60_000
    assert list(training.labels[:5]) == [5, 0, 4, 1, 9]
    # The mean of the training pixels, as published with every recipe that normalises by it.
    assert np.mean([batch.images.mean() for batch in training.batches(10_000)]) == pytest.approx(0.1307, abs=1e-4)
