"""Clean-label poisons on le_net: the compiled engine against ART's attack with the same batches and images."""

from typing import Any

import keras
import numpy as np
from art.attacks.poisoning import PoisoningAttackBackdoor, PoisoningAttackCleanLabelBackdoor
from art.estimators.classification import TensorFlowV2Classifier

from benchmarks import raw
from benchmarks.measure import Pair, pair
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.poisoning import CleanLabelBackdoor, poison_training_set
from dioptra_assets.robustness.training.architectures import build

TARGET = 3


def rows(quick: bool = False) -> list[Pair]:
    """What was measured."""
    count, steps = (8, 20) if quick else (100, 40)
    generator = np.random.default_rng(0)
    model = build("le_net", (28, 28, 1), 10)
    images = generator.random((count, 28, 28, 1), np.float32)
    labels = np.full(count, TARGET)
    image_set = ImageSet.from_arrays(images, labels, [str(i) for i in range(10)])
    config = CleanLabelBackdoor(target_class=TARGET, poison_fraction=1.0, steps=steps, eps=2.0)

    def ours(batch_size: int) -> np.ndarray:
        sized = config.model_copy(update={"batch_size": batch_size})
        poisoned = poison_training_set(sized, image_set, rows=np.arange(count), seed=0, proxy_model=model)
        return np.concatenate([batch.images for batch in poisoned.batches])

    classifier = TensorFlowV2Classifier(
        model=model,
        nb_classes=10,
        input_shape=(28, 28, 1),
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )

    def art(batch_size: int) -> np.ndarray:
        attack: Any = PoisoningAttackCleanLabelBackdoor(
            PoisoningAttackBackdoor(config.trigger.stamp),
            classifier,
            np.eye(10)[TARGET],
            pp_poison=1 - 1e-9,  # below 1 is demanded
            norm=2,
            eps=config.eps,
            eps_step=config.eps_step,
            max_iter=steps,
        )
        attack.attack.set_params(batch_size=batch_size, verbose=False)
        # The perturbation as ART's `poison` makes it, of every image once: `poison` draws them with replacement.
        return config.trigger.stamp(attack.attack.generate(images, np.eye(10)[labels]))

    pairs = []
    for size in (32, 100):
        difference = np.abs(art(size) - ours(size)).max()
        assert difference < 0.01, f"the engines differ by {difference}"
        pairs.append(
            pair(
                f"clean-label poisons, {count} images, {steps} steps, batch {size}",
                lambda size=size: art(size),
                lambda size=size: ours(size),
                rounds=1 if quick else 3,
                floor=4.0,
                raw=raw.gradients(model, images, labels, batch_size=size, steps=steps),
            )
        )
    return pairs
