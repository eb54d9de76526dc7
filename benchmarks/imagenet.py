"""What resnet50 at 224 x 224 costs on this machine: `python -m benchmarks.imagenet`.

The table is in docs/explanation/scale.md.

Gradients and forward passes a second through the attack and the prediction that cells use, and how fast an adversarial
set of such images is written, how small it becomes, and how fast it is read. Real photographs, where
DIOPTRA_ASSETS_DATA has some in `imagenet-sample`; drawn ones compress less.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.measure import keep

SHAPE = (224, 224, 3)
EPS = 4 / 255


def main(arguments: list[str] | None = None) -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imagenet", description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="Measurements, of which the median counts.")
    chosen = parser.parse_args(arguments)
    lines = measured(chosen.images, chosen.batch_size, chosen.rounds)
    keep("imagenet", "\n".join(["| what | measured |", "|---|---|", *lines]))


def measured(count: int, batch_size: int, rounds: int) -> list[str]:
    """The lines of the table."""
    from dioptra_assets.robustness.attacks import FastGradientMethod, perturb_set
    from dioptra_assets.robustness.evaluation.predictions import predict
    from dioptra_assets.robustness.image_set import ImageBatch, ImageSet
    from dioptra_assets.robustness.training.architectures import build
    from resources.image_store import read_image_set, write_image_set
    from resources.store import Cell, CellStore

    pixels, kind = _photographs(count)
    names = tuple(str(label) for label in range(1000))
    image_set: Any = ImageSet.from_arrays(pixels, np.arange(len(pixels)) % 1000, names)
    model = build("resnet50", SHAPE, 1000)
    attack = FastGradientMethod(eps=EPS, batch_size=batch_size)
    attacked: list[Any] = []

    def gradients() -> None:
        attacked[:] = list(perturb_set(attack, model, image_set, seed=0, class_count=1000))

    gradient = count / _median(gradients, rounds)
    forward = count / _median(lambda: predict(model, image_set, batch_size), rounds)
    batches = [ImageBatch(batch.images, batch.index) for batch in attacked]
    held = count * np.prod(SHAPE) * 4 / 1e6
    with tempfile.TemporaryDirectory() as folder:
        store = CellStore(folder)

        def write(name: str, images: Any) -> Any:
            return write_image_set(store.at(Cell(name)), images, n=count, image_shape=SHAPE, class_names=names)

        numbers = itertools.count()
        seconds = _median(lambda: write(f"set/adversarial_{next(numbers)}", iter(batches)), rounds)
        stored = write("set/adversarial", iter(batches))
        clean = write("set/testing", iter([ImageBatch(pixels, image_set.index)]))
        read = _median(lambda: read_image_set(stored).to_numpy(), rounds)
        ratios = [sum(file.size for file in one.manifest.files.values()) / 1e6 / held for one in (clean, stored)]
    return [
        f"| resnet50, FGM, batch {batch_size}: gradients | {gradient:.2f} images/s |",
        f"| resnet50, predictions | {forward:.2f} images/s |",
        f"| adversarial set written, {count} {kind}, {held:.0f} MB of float32 | {held / seconds:.0f} MB/s of pixels |",
        f"| adversarial set read and checked | {held / read:.0f} MB/s of pixels |",
        f"| stored size of the testing set, of raw float32 | {ratios[0]:.2f} |",
        f"| stored size of the adversarial set, of raw float32 | {ratios[1]:.2f} |",
    ]


def _photographs(count: int) -> tuple[np.ndarray, str]:
    from PIL import Image

    from dioptra_assets.robustness.data.base import local_data

    folder = local_data("imagenet-sample")
    files = sorted(folder.rglob("*.*")) if folder else []
    files = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if not files:
        return np.random.default_rng(0).random((count, *SHAPE), np.float32), "drawn images"
    shown = [np.asarray(Image.open(path).convert("RGB").resize(SHAPE[:2])) for path in files[:count]]
    repeated = [shown[number % len(shown)] for number in range(count)]
    return np.stack(repeated).astype(np.float32) / 255, "photographs"


def _median(work: Any, rounds: int) -> float:
    """Seconds, after one run that compiles and is not counted."""
    work()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
