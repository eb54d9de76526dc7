"""PGD-40 and BIM-10 on le_net: the compiled engine against ART with the same batches, and against the bare gradient."""

import time
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure import keep, pair, table
from dioptra_assets.robustness.architectures import build
from dioptra_assets.robustness.attacks import compiled, parse_attack, perturb_set
from dioptra_assets.robustness.image_set import ImageSet

BATCH = 256
CASES = {
    "PGD-40": ({"method": "pgd", "eps": 0.3, "eps_step": 0.01, "steps": 40, "random_starts": 0}, 512, 256),
    "BIM-10": ({"method": "bim", "eps": 0.3, "eps_step": 0.03, "steps": 10}, 512, 32),
}


def main() -> None:
    """Print and keep the table."""
    model = build("le_net", (28, 28, 1), 10)
    pairs, shares = [], []
    for name, (entry, images, batch) in CASES.items():
        image_set = _images(images)

        def attack(engine: str, entry: dict[str, Any] = entry, batch: int = batch, images: Any = image_set) -> Any:
            config = parse_attack(entry | {"engine": engine, "batch_size": batch})
            return np.concatenate([b.images for b in perturb_set(config, model, images, seed=0, class_count=10)])

        assert np.array_equal(attack("art"), attack("compiled")), "the engines disagree"
        pairs.append(
            pair(
                f"{name}, {images} images, batch {batch}",
                lambda attack=attack: attack("art"),
                lambda attack=attack: attack("compiled"),
                rounds=3,
            )
        )
        bare = _bare_gradients(model, image_set, batch, entry["steps"])
        seconds = [(_seconds(bare), _seconds(lambda attack=attack: attack("compiled"))) for _ in range(3)]
        shares.append(f"{name} runs at {median(raw / ours for raw, ours in seconds):.0%} of the rate of its gradients.")
    keep("pgd", "\n\n".join([table(pairs, "ART"), *shares]))


def _images(count: int) -> ImageSet:
    generator = np.random.default_rng(0)
    images = generator.random((count, 28, 28, 1), np.float32)
    return ImageSet.from_arrays(images, generator.integers(0, 10, count), [str(digit) for digit in range(10)])


def _bare_gradients(model: Any, images: ImageSet, batch_size: int, steps: int) -> Any:
    """As many gradients of the loss as the attack takes, each at the image itself, in one compiled call a batch."""
    ops = compiled.keras_ops()

    def gradients(images: Any, goals: Any) -> dict[str, Any]:
        def again(_: Any, total: Any) -> Any:
            # What it adds depends on what was added, so that no gradient can be left out.
            return total + compiled.loss_gradient(model, images + 0.0 * total, goals, 10)[0]

        return {"total": ops.fori_loop(0, steps, again, ops.zeros_like(images))}

    run = compiled.compile_batches(gradients)

    def work() -> None:
        for batch in images.batches(batch_size):
            run(np.asarray(batch.images, np.float32), batch.labels.astype(np.int32))

    work()
    return work


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
