"""The pixel and threshold attacks: the compiled engine against ART, the same few images with the same generations.

ART needs the package cma for CMA-ES. Where it is not installed our seconds stand alone in the table.
"""

import importlib.util
import math
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.measure import Pair, pair
from dioptra_assets.robustness.attacks import parse_attack, perturb_set
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.training.architectures import build

IMAGES = {"le_net": 2, "shallow_net": 4}
ROUNDS = 3
# Architecture, method, es, th, floor.
WORK = [
    ("le_net", "pixel", 1, 1, 3.0),
    ("shallow_net", "pixel", 1, 1, 10.0),
    ("shallow_net", "pixel", 1, 5, 10.0),
    ("shallow_net", "threshold", 1, 5, 10.0),
    ("le_net", "pixel", 0, 1, 5.0),
    ("le_net", "pixel", 0, 5, 5.0),
    ("shallow_net", "pixel", 0, 5, 5.0),
    ("le_net", "threshold", 0, 5, 5.0),
    ("shallow_net", "threshold", 0, 5, 5.0),
]


def rows(quick: bool = False) -> list[Pair]:
    """What was measured."""
    images, labels = _digits()
    held_out = max(IMAGES.values())
    work = [line for line in WORK if line[0] == "shallow_net" and line[1] == "pixel"] if quick else WORK
    models = {name: _trained(name, images[held_out:], labels[held_out:]) for name in {line[0] for line in work}}
    pairs = []
    for architecture, method, es, th, floor in work:
        count = 1 if quick else IMAGES[architecture]
        attacked = ImageSet.from_arrays(images[:count], labels[:count], [str(i) for i in range(10)])
        config = {"method": method, "es": es, "th": th} | ({"max_iter": 3} if quick else {})
        measured = _measured(models[architecture], attacked, architecture, config, 1 if quick else ROUNDS)
        pairs.append(replace(measured, floor=None if math.isnan(measured.ratio) else floor))
    return pairs


def _measured(model: Any, images: ImageSet, architecture: str, config: dict[str, Any], rounds: int) -> Pair:
    found: dict[str, int] = {}

    def attack(engine: str) -> None:
        attack = parse_attack(config | {"engine": engine})
        batches = perturb_set(attack, model, images, seed=0, class_count=10)
        found[engine] = sum(int(batch.index["found"].sum()) for batch in batches)

    strategy = "DE" if config["es"] else "CMA-ES"
    name = f"{config['method']}, {strategy}, th {config['th']}, {len(images)} images of {architecture}"
    if config["es"] == 0 and not importlib.util.find_spec("cma"):
        attack("compiled")
        ours = statistics.median(_seconds(attack) for _ in range(rounds))
        return Pair(f"{name} (found: {found['compiled']}; cma is not installed)", math.nan, ours, math.nan)
    measured = pair("", lambda: attack("art"), lambda: attack("compiled"), rounds=rounds)
    name += f" (found: ART {found['art']}, ours {found['compiled']})"
    return replace(measured, name=name)


def _seconds(attack: Any) -> float:
    started = time.perf_counter()
    attack("compiled")
    return time.perf_counter() - started


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits in the size of MNIST."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    large = np.kron(data.images / 16, np.ones((1, 3, 3)))
    return np.pad(large, ((0, 0), (2, 2), (2, 2)))[..., None].astype(np.float32), data.target


def _trained(name: str, images: np.ndarray, labels: np.ndarray) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    model: Any = build(name, (28, 28, 1), 10)
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, labels, batch_size=32, epochs=8 if name == "shallow_net" else 2, verbose=0)
    return model
