"""The fast gradient method on le_net: the compiled engine against ART with the same batches."""

import numpy as np

from benchmarks.measure import keep, pair, table
from dioptra_assets.robustness.architectures import build
from dioptra_assets.robustness.attacks import FastGradientMethod, perturb_set
from dioptra_assets.robustness.image_set import ImageSet

IMAGES = 4000


def main() -> None:
    """Print and keep the table."""
    generator = np.random.default_rng(0)
    model = build("le_net", (28, 28, 1), 10)
    images = generator.random((IMAGES, 28, 28, 1), np.float32)
    image_set = ImageSet.from_arrays(images, generator.integers(0, 10, IMAGES), [str(i) for i in range(10)])

    def attack(engine: str, batch_size: int) -> np.ndarray:
        config = FastGradientMethod.model_validate({"eps": 0.3, "engine": engine, "batch_size": batch_size})
        return np.concatenate([b.images for b in perturb_set(config, model, image_set, seed=0, class_count=10)])

    pairs = []
    for size in (32, 256):
        assert np.array_equal(attack("art", size), attack("compiled", size)), "the engines disagree"
        name = f"FGM, {IMAGES:,} images, batch {size}"
        pairs.append(pair(name, lambda size=size: attack("art", size), lambda size=size: attack("compiled", size)))
    keep("fgm", table(pairs, "ART"))


if __name__ == "__main__":
    main()
