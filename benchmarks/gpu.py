"""Images a second of FGM, PGD and Madry steps, beside the bare gradients: `python -m benchmarks.gpu --help`.

On TensorFlow, which is what cells run on, or on JAX (`--backend jax`), which needs jax, keras, numpy and what
`dioptra_assets.robustness` imports, and no TensorFlow. The table is kept in results/gpu_BACKEND.md.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_backends import Jax, Tensorflow
from benchmarks.measure import keep
from dioptra_assets.robustness.attacks import Attack, parse_attack, perturb_set
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.training.architectures import build
from dioptra_assets.robustness.training.madry import MadryTraining

BACKENDS: dict[str, type[Tensorflow | Jax]] = {"tensorflow": Tensorflow, "jax": Jax}

# Image shape, classes, eps.
MODELS: dict[str, tuple[tuple[int, int, int], int, float]] = {
    "le_net": ((28, 28, 1), 10, 0.3),
    "resnet50": ((224, 224, 3), 1000, 4 / 255),
}
MADRY_STEPS = 7


def main(arguments: list[str] | None = None) -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--backend", choices=tuple(BACKENDS), default="tensorflow", help="What computes.")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--le-net", type=int, nargs="*", default=[256, 2048, 8192], metavar="ROWS", help="Batch sizes.")
    parser.add_argument("--resnet50", type=int, nargs="*", default=[32, 128, 256], metavar="ROWS", help="Batch sizes.")
    parser.add_argument("--batches", type=int, default=8, help="Batches a measurement.")
    parser.add_argument("--rounds", type=int, default=3, help="Measurements, of which the median counts.")
    parser.add_argument(
        "--quick", action="store_true", help="Tiny and le_net alone, to see that it runs; nothing is kept."
    )
    chosen = parser.parse_args(arguments)
    os.environ["KERAS_BACKEND"] = chosen.backend
    if chosen.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    backend = BACKENDS[chosen.backend]()
    device = backend.device(chosen.device)
    sizes = {"le_net": chosen.le_net, "resnet50": chosen.resnet50}
    if chosen.quick:
        sizes, chosen.batches, chosen.rounds = {"le_net": [4]}, 1, 1
    lines = ["| model | batch | work | gradients an image | images/s | of the bare rate |", "|---|---|---|---|---|---|"]
    for name, batches in sizes.items():
        for rows in batches:
            lines += measured(backend, name, rows, (chosen.batches, chosen.rounds), pgd_steps=2 if chosen.quick else 40)
            print("\n".join(lines[-4:]), flush=True)
    if not chosen.quick:
        keep(f"gpu_{chosen.backend}", f"{_versions(device)}\n\n{EXPLAINED}\n\n" + "\n".join(lines))


EXPLAINED = """The bare rate is that of a compiled gradient of the loss on images that are already on the device.
Attacks take images from the host's memory and give them back there; PGD draws its random starts on the host. A Madry
step is the attack of a training batch and the step of the optimizer, on the device. Of the bare rate: what the
gradients alone would take, as a share of the time."""


def measured(backend: Tensorflow | Jax, name: str, batch: int, often: tuple[int, int], *, pgd_steps: int) -> list[str]:
    """The lines of one model and batch size; `often` is how many batches a measurement, and how many measurements."""
    batches, rounds = often
    shape, classes, eps = MODELS[name]
    generator = np.random.default_rng(0)
    images = generator.random((batch * batches, *shape), np.float32)
    labels = generator.integers(0, classes, len(images))
    image_set = ImageSet.from_arrays(images, labels, [str(label) for label in range(classes)])
    model = build(name, shape, classes)

    def attack(entry: dict[str, Any]) -> Callable[[], None]:
        config: Attack = parse_attack(entry | {"eps": eps, "batch_size": batch})

        def work() -> None:
            for _ in perturb_set(config, model, image_set, seed=0, class_count=classes):
                pass

        return work

    rows = images[:batch], labels[:batch]
    bare = len(images) / _median(backend.gradients(model, *rows, batches), rounds)
    work = {
        "FGM": (1, attack({"method": "fgm"})),
        f"PGD-{pgd_steps}": (pgd_steps, attack({"method": "pgd", "steps": pgd_steps})),
        f"Madry step, PGD-{MADRY_STEPS}": (
            MADRY_STEPS + 1,
            backend.madry_steps(model, MadryTraining(eps=eps, steps=MADRY_STEPS), rows, batches),
        ),
    }
    lines = [f"| {name} | {batch:,} | bare gradient | 1 | {bare:,.0f} | |"]
    for what, (gradients, run) in work.items():
        rate = len(images) / _median(run, rounds)
        lines.append(f"| {name} | {batch:,} | {what} | {gradients} | {rate:,.0f} | {rate * gradients / bare:.0%} |")
    return lines


def _median(work: Callable[[], None], rounds: int) -> float:
    """Seconds, after one run that compiles and is not counted."""
    work()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _versions(device: str) -> str:
    import keras

    return f"{device}, keras {keras.__version__}, numpy {np.__version__}"


if __name__ == "__main__":
    main()
