"""MNIST: 60,000 training and 10,000 testing digits of 28 x 28 (LeCun, Cortes, Burges), from its four IDX files."""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from dioptra_assets.robustness.data.base import DATA_VARIABLE, BytePixels, DataError, DataSource, Split, local_data
from dioptra_assets.robustness.image_set import ImageSet

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
CLASS_NAMES = tuple(str(digit) for digit in range(10))
TIMEOUT_SECONDS = 30
HELP = f"set `directory` of the source or the environment variable {DATA_VARIABLE} (which holds mnist/) to a local copy"


@dataclass(frozen=True)
class IdxFile:
    """One published file.

    Attributes:
        name: its name, unpacked; packed it ends in `.gz`.
        size: bytes, unpacked.
        sha256: of the unpacked bytes; how well a copy was packed does not matter.
        packed_sha256: of the `.gz` that the mirrors serve.
    """

    name: str
    size: int
    sha256: str
    packed_sha256: str


# For each split the images, then the labels.
FILES: dict[Split, tuple[IdxFile, IdxFile]] = {
    "training": (
        IdxFile(
            "train-images-idx3-ubyte",
            47_040_016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            60_008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
    ),
    "testing": (
        IdxFile(
            "t10k-images-idx3-ubyte",
            7_840_016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            10_008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
}


class MnistSource(DataSource, frozen=True):
    """The four IDX files of MNIST, gzip or not, checked against their published checksums.

    They are read from `directory`; without one from the folder `mnist` of DIOPTRA_ASSETS_DATA or of `shared/data`
    beside the repository; without these the two files of a split are downloaded once to the user's cache.

    Attributes:
        directory: the folder that holds the files.
        limit_training: how many training images to take, the first ones as published and not a stratified sample; None
            for all 60,000.
        limit_testing: how many testing images to take, likewise; None for all 10,000.
    """

    source: Literal["mnist"] = "mnist"
    directory: Path | None = None
    limit_training: int | None = Field(default=None, ge=1, le=60_000)
    limit_testing: int | None = Field(default=None, ge=1, le=10_000)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(28, 28, 1)."""
        return 28, 28, 1

    def class_count(self) -> int:
        """Ten."""
        return 10

    def load(self, split: Split) -> ImageSet:
        """The images of one split as published, held as bytes; ids `training-00000`, `testing-00000` and on.

        Raises:
            DataError: when a file is missing, damaged, not the published one, or cannot be downloaded.
        """
        limit = self.limit_training if split == "training" else self.limit_testing
        directory = self.directory.expanduser() if self.directory else local_data("mnist")
        images, labels = (
            _read_idx(_find(directory, file) if directory else _download(file), file)[:limit] for file in FILES[split]
        )
        index = pd.DataFrame(
            {"image_id": [f"{split}-{row:05d}" for row in range(len(labels))], "label": labels.astype(np.int64)}
        )
        return ImageSet(BytePixels(images[..., np.newaxis]), index, CLASS_NAMES, f"mnist/{split}_set")


def _find(directory: Path, file: IdxFile) -> Path:
    candidates = [directory / file.name, directory / f"{file.name}.gz"]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise DataError(f"{directory} holds neither {file.name} nor {file.name}.gz of MNIST: {HELP}")
    return found


def _download(file: IdxFile) -> Path:
    """The file in the user's cache, fetched when it is not there whole; a broken download leaves nothing behind."""
    import platformdirs
    import pooch
    import requests

    cache = platformdirs.user_cache_path("dioptra-assets") / "mnist"
    packed = f"{file.name}.gz"
    reasons = []
    for mirror in MIRRORS:
        try:
            path = pooch.retrieve(
                mirror + packed,
                known_hash=f"sha256:{file.packed_sha256}",
                fname=packed,
                path=cache,
                downloader=pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_SECONDS),  # pyright: ignore[reportArgumentType]
            )
        except requests.ConnectionError:
            reasons.append(f"{mirror} (no connection)")
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; pooch raises ValueError on a wrong hash
            reasons.append(f"{mirror} ({_short(error)})")
        else:
            return Path(path)
    raise DataError(f"{packed} of MNIST could not be fetched to {cache} from {' or from '.join(reasons)}: {HELP}")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"


def _read_idx(path: Path, file: IdxFile) -> np.ndarray:
    """uint8 [n, ...], in the shape that the file's header gives."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            # One byte past the published size is enough to see a wrong file, and a gzip bomb is never unpacked.
            content = (gzip.GzipFile(fileobj=raw) if packed else raw).read(file.size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as {file.name} of MNIST ({_short(error)}): {HELP}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        what = "it is longer" if len(content) > file.size else f"{len(content):,} bytes with sha256 {digest}"
        raise DataError(
            f"{path}: is not {file.name} of MNIST, {what} where {file.size:,} bytes with sha256 {file.sha256} are "
            f"published: {HELP}"
        )
    # IDX: two zero bytes, the type (8 is uint8), the number of dimensions, each dimension as big-endian int32.
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
