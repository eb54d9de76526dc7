"""The fast gradient method on le_net: the compiled engine against ART with the same batches."""

import numpy as np

from benchmarks import raw
from benchmarks.measure import Pair, pair
from dioptra_assets.robustness.attacks import FastGradientMethod, perturb_set
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.training.architectures import build


def rows(quick: bool = False) -> list[Pair]:
    """What was measured."""
    count = 64 if quick else 4000
    generator = np.random.default_rng(0)
    model = build("le_net", (28, 28, 1), 10)
    images = generator.random((count, 28, 28, 1), np.float32)
    image_set = ImageSet.from_arrays(images, generator.integers(0, 10, count), [str(i) for i in range(10)])

    def attack(engine: str, batch_size: int) -> np.ndarray:
        config = FastGradientMethod.model_validate({"eps": 0.3, "engine": engine, "batch_size": batch_size})
        return np.concatenate([b.images for b in perturb_set(config, model, image_set, seed=0, class_count=10)])

    pairs = []
    for size, floor in ((32, 2.5), (256, None)):
        assert np.array_equal(attack("art", size), attack("compiled", size)), "the engines disagree"
        pairs.append(
            pair(
                f"FGM, {count:,} images, batch {size}",
                lambda size=size: attack("art", size),
                lambda size=size: attack("compiled", size),
                rounds=1 if quick else 5,
                floor=floor,
                raw=raw.gradients(model, images, image_set.labels, batch_size=size),
            )
        )
    return pairs
