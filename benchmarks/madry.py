"""An epoch of Madry training of le_net: one compiled step a batch against ART's trainer, same batches and steps."""

import keras
import numpy as np

from benchmarks import raw
from benchmarks.measure import Pair, pair
from dioptra_assets.robustness.training.architectures import build
from dioptra_assets.robustness.training.madry import MadryTraining, adversarial_training

BATCH = 64
CONFIG = MadryTraining(eps=0.3, eps_step=0.1, steps=7)


def rows(quick: bool = False) -> list[Pair]:
    """What was measured."""
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import TensorFlowV2Classifier

    count = 64 if quick else 512
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    images = generator.random((count, 28, 28, 1), np.float32)
    labels = generator.integers(0, 10, count)

    classifier = TensorFlowV2Classifier(
        model=build("le_net", (28, 28, 1), 10),
        nb_classes=10,
        input_shape=(28, 28, 1),
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.Adam(),
        clip_values=(0.0, 1.0),
    )
    trainer = AdversarialTrainerMadryPGD(
        classifier, eps=CONFIG.eps, eps_step=CONFIG.step_size, max_iter=CONFIG.steps, batch_size=BATCH
    )
    one_hot = np.eye(10, dtype=np.float32)[labels]

    def art() -> None:
        trainer.fit(images, one_hot, nb_epochs=1)

    model = build("le_net", (28, 28, 1), 10)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def ours() -> None:
        # The step is compiled once a fit, in the run that is not counted, as in a fit of many epochs.
        model.fit(images, labels, batch_size=BATCH, epochs=1, verbose=0)  # pyright: ignore[reportArgumentType]

    # Each step takes one gradient of the weights beside those of the images.
    bare = raw.gradients(model, images, labels, batch_size=BATCH, steps=CONFIG.steps + 1)
    name = f"Madry epoch, {count:,} images, batch {BATCH}, PGD-{CONFIG.steps}"
    with adversarial_training(CONFIG, model, 0):
        return [pair(name, art, ours, rounds=1 if quick else 3, floor=4.0, raw=bare)]
