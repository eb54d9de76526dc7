"""Peak resident memory while an adversarial set larger than it is made, stored and measured.

5,000 photographs of 224 x 224 x 3 in float32 are 3.0 GB, and must fit in 2 GB. So must attacks with default settings on
the architectures that photographs are given to (`benchmarks/photographs.py`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import photographs
from benchmarks.measure import Pair
from benchmarks.photographs import GB, LIMIT, SHAPE, DrawnPixels, peak


def rows(quick: bool = False, images: int = 5_000, batch_size: int = 32) -> list[Pair]:
    """What was measured, in a process that does nothing else; the peer is the set itself."""
    count = 8 if quick else images
    command = [sys.executable, "-m", "benchmarks.memory", f"--images={count}", f"--batch-size={batch_size}"]
    answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    held = count * np.prod(SHAPE) * 4 / GB
    name = f"FGM set of {count:,} photographs of 224x224x3, batch {batch_size}: peak resident memory"
    whole = 5_000 * np.prod(SHAPE) * 4 / GB
    floor = None if quick else whole / LIMIT
    return [
        Pair(f"{name}, {step}; peer: the set itself", held, most, held / most, floor, unit="GB")
        for step, most in answer.items()
    ] + photographs.rows(quick)


def peaks(count: int, batch_size: int) -> dict[str, float]:
    """Peak resident memory of this process in GB, after each step of a cell."""
    import keras

    from dioptra_assets.robustness.attacks import FastGradientMethod, perturb_set
    from dioptra_assets.robustness.evaluation.distances import set_distances
    from dioptra_assets.robustness.evaluation.predictions import predict
    from dioptra_assets.robustness.image_set import ImageBatch, ImageSet
    from resources.image_store import read_image_set, write_image_set
    from resources.store import Cell, CellStore

    classes = tuple(str(label) for label in range(10))
    index = pd.DataFrame({"image_id": [f"{row:06d}" for row in range(count)], "label": np.arange(count) % 10})
    photographs = ImageSet(DrawnPixels(count), index, classes, "photographs")
    layers = keras.layers
    model: Any = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(8, 5, strides=4, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, name="logits"),
        ]
    )
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        attacked = perturb_set(
            FastGradientMethod(eps=4 / 255, batch_size=batch_size), model, photographs, seed=0, class_count=10
        )
        stored = write_image_set(
            CellStore(folder).at(Cell("bench/adversarial_set")),
            (ImageBatch(batch.images, batch.index) for batch in attacked),
            n=count,
            image_shape=SHAPE,
            class_names=classes,
        )
        found["made and stored"] = peak()
        adversarial = read_image_set(stored)
        predict(model, adversarial, batch_size)
        set_distances(photographs, adversarial, batch_size)
        found["read, predicted and compared too"] = peak()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--batch-size", type=int, default=32)
    chosen = parser.parse_args()
    print(json.dumps(peaks(chosen.images, chosen.batch_size)))
