"""Peak resident memory of attacks on photographs, under a declared limit; and that batches change no result.

Each cell is made in a process of its own: the model and the images are read from a store, and what is made is stored.
`python -m benchmarks.photographs le_net fgm 3000` measures one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import Pair
from dioptra_assets.robustness.image_set import ImageBatch, ImageSet
from resources.image_store import read_image_set, write_image_set
from resources.store import Cell, CellStore

SHAPE = (224, 224, 3)
CLASSES = tuple(str(label) for label in range(10))
GB = 1e9
LIMIT = 2.0
# More images take no more memory, only hours: two counts show that.
CASES = (
    ("le_net", "fgm", 3_000),
    ("le_net", "pgd", 8),
    ("le_net", "pgd", 32),
    ("resnet50", "fgm", 32),
    ("resnet50", "fgm", 128),
    ("resnet50", "pgd", 4),
)
# As many are attacked again in batches of 16.
COMPARED = {"fgm": 256, "pgd": 4}
READ_AT_ONCE = 16


class DrawnPixels:
    """Images drawn at random whenever they are asked for, the same each time."""

    def __init__(self, count: int):
        self.shape = (count, *SHAPE)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """float32 [rows, 224, 224, 3] in [0, 1)."""
        first, stop, _ = rows.indices(self.shape[0])
        images = np.empty((stop - first, *SHAPE), np.float32)
        for row in range(first, stop):
            np.random.default_rng(row).random(dtype=np.float32, out=images[row - first])
        return images


@dataclass(frozen=True)
class Made:
    """What a process that makes one cell says of it.

    Attributes:
        peak: GB, resident.
        before: GB, when the model was loaded.
        batch: images attacked at once.
        seconds: of the attack, reading and storing included.
    """

    peak: float
    before: float
    batch: int
    seconds: float


def rows(quick: bool = False) -> list[Pair]:
    """What was measured; the peer is the limit."""
    return [measured(*case) for case in ((("le_net", "fgm", 4),) if quick else CASES)]


def measured(architecture: str, method: str, count: int) -> Pair:
    """One case: under the limit with the default batch size, and some of it again in batches of 16 without one.

    Args:
        architecture: the attacked model, untrained.
        method: `fgm` or `pgd`, with its default settings.
        count: images.
    """
    with tempfile.TemporaryDirectory() as folder:
        _in_a_process(["prepare", folder, architecture, str(count)])
        made = Made(**_in_a_process(["make", folder, method, "0"], DIOPTRA_ASSETS_MEMORY=f"{LIMIT} GB"))
        # With so much that no batch is halved.
        _in_a_process(["make", folder, method, "16", f"--only={COMPARED[method]}"], DIOPTRA_ASSETS_MEMORY="1 TB")
        store = CellStore(folder)
        ours, others = (
            read_image_set(store.open(Cell("bench/adversarial_set", {"batch_size": size}))) for size in ("0", "16")
        )
        largest, differing = _differences(ours, others)
    name = (
        f"{method.upper()} of {count:,} photographs of 224x224x3 on {architecture}, {made.batch} at once, "
        f"{made.seconds / count:.2f} s an image: peak resident memory ({made.before:.2f} GB with the model loaded; "
        f"of a million numbers {differing:,.2f} differ from batches of 16, by at most {largest:.1g}); peer: the limit"
    )
    return Pair(name, LIMIT, made.peak, LIMIT / made.peak, 1.0, unit="GB")


def prepare(folder: str, architecture: str, count: int) -> None:
    """Store the images and the model."""
    from dioptra_assets.robustness.training.architectures import build
    from resources.models import write_model

    store = CellStore(folder)
    index = pd.DataFrame({"image_id": [f"{row:06d}" for row in range(count)], "label": np.arange(count) % 10})
    drawn = ImageSet(DrawnPixels(count), index, CLASSES, "photographs")
    _store(store, Cell("bench/testing_set"), drawn.batches(READ_AT_ONCE), count)
    model = build(architecture, SHAPE, len(CLASSES))
    write_model(store.at(Cell("bench/model")), model, pd.DataFrame({"epoch": [0], "loss": [0.0]}))


def make(folder: str, method: str, batch_size: int, only: int | None) -> Made:
    """Make the adversarial set; `batch_size` 0 is the default one."""
    from dioptra_assets.robustness.attacks import parse_attack, perturb_set
    from resources.models import read_model

    store, sizes = CellStore(folder), []
    images = read_image_set(store.open(Cell("bench/testing_set")))
    if only is not None and only < len(images):
        images = images[:only]
    model: Any = read_model(store.open(Cell("bench/model")))
    before, started = peak(), time.perf_counter()
    attack = parse_attack({"method": method, "eps": 4 / 255} | ({"batch_size": batch_size} if batch_size else {}))

    def attacked() -> Iterator[ImageBatch]:
        for batch in perturb_set(attack, model, images, seed=0, class_count=len(CLASSES), log=_log):
            sizes.append(len(batch.images))
            yield ImageBatch(batch.images, batch.index)

    _store(store, Cell("bench/adversarial_set", {"batch_size": str(batch_size)}), attacked(), len(images))
    return Made(peak(), before, max(sizes), time.perf_counter() - started)


def peak() -> float:
    """Peak resident memory of this process in GB; it starts no others that last."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GB


def _store(store: CellStore, cell: Cell, batches: Iterator[ImageBatch], count: int) -> None:
    write_image_set(store.at(cell), batches, n=count, image_shape=SHAPE, class_names=CLASSES)


def _differences(first: ImageSet, second: ImageSet) -> tuple[float, float]:
    """The largest difference of the images that both have, and of a million numbers how many differ visibly.

    A gradient that is all but zero may have another sign where a batch of another size is summed up in another order.
    """
    largest, differing, total = 0.0, 0, 0
    for one, other in zip(first.batches(READ_AT_ONCE), second.batches(READ_AT_ONCE), strict=False):
        apart = np.abs(one.images[: len(other.images)] - other.images[: len(one.images)])
        largest, total = max(largest, float(apart.max())), total + apart.size
        differing += int((apart > 1e-6).sum())
    return largest, 1e6 * differing / total


def _in_a_process(words: Sequence[str], **settings: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.photographs", *words]
    environment = {name: value for name, value in os.environ.items() if name != "DIOPTRA_ASSETS_MEMORY"} | settings
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _log(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def main() -> None:
    """One case, or one step of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs")
    parser.add_argument("words", nargs="+")
    parser.add_argument("--only", type=int)
    chosen = parser.parse_args()
    match chosen.words:
        case ["prepare", folder, architecture, count]:
            prepare(folder, architecture, int(count))
            print("{}")
        case ["make", folder, method, batch_size]:
            print(json.dumps(vars(make(folder, method, int(batch_size), chosen.only))))
        case [architecture, method, count]:
            print(measured(architecture, method, int(count)))


if __name__ == "__main__":
    main()
