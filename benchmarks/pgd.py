"""PGD-40 and BIM-10 on le_net: the compiled engine against ART with the same batches."""

from typing import Any

import numpy as np

from benchmarks import raw
from benchmarks.measure import Pair, pair
from dioptra_assets.robustness.attacks import parse_attack, perturb_set
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.training.architectures import build

PGD_40 = {"method": "pgd", "eps": 0.3, "eps_step": 0.01, "steps": 40, "random_starts": 0}
# Entry, batch size (32 is ART's own), floor.
CASES = {
    "PGD-40": (PGD_40, 32, 3.0),
    "PGD-40 of large batches": (PGD_40, 256, None),
    "BIM-10": ({"method": "bim", "eps": 0.3, "eps_step": 0.03, "steps": 10}, 32, None),
}


def rows(quick: bool = False) -> list[Pair]:
    """What was measured."""
    count = 32 if quick else 256
    generator = np.random.default_rng(0)
    model = build("le_net", (28, 28, 1), 10)
    images = generator.random((count, 28, 28, 1), np.float32)
    image_set = ImageSet.from_arrays(images, generator.integers(0, 10, count), [str(digit) for digit in range(10)])
    pairs = []
    for name, (entry, batch_size, floor) in CASES.items():

        def attack(engine: str, entry: dict[str, Any] = entry, batch_size: int = batch_size) -> np.ndarray:
            config = parse_attack(entry | {"engine": engine, "batch_size": batch_size})
            return np.concatenate([b.images for b in perturb_set(config, model, image_set, seed=0, class_count=10)])

        assert np.array_equal(attack("art"), attack("compiled")), "the engines disagree"
        pairs.append(
            pair(
                f"{name}, {count} images, batch {batch_size}",
                lambda attack=attack: attack("art"),
                lambda attack=attack: attack("compiled"),
                rounds=1 if quick else 3,
                floor=floor,
                raw=raw.gradients(model, images, image_set.labels, batch_size=batch_size, steps=entry["steps"]),
            )
        )
    return pairs
