"""Model inversion of le_net: all classes in one compiled loop against ART's MIFace, class after class."""

import keras
import numpy as np

from benchmarks import raw
from benchmarks.measure import Pair, pair
from dioptra_assets.robustness.inversion.miface import ModelInversion, TrainingFacts, invert
from dioptra_assets.robustness.training.architectures import build

CLASSES = 10


def rows(quick: bool = False) -> list[Pair]:
    """What was measured."""
    from art.attacks.inference.model_inversion import MIFace
    from art.estimators.classification import TensorFlowV2Classifier

    steps = 5 if quick else 100
    keras.utils.set_random_seed(0)
    model = build("le_net", (28, 28, 1), CLASSES)
    # Too small a step to become confident in: both compute all steps of all classes.
    config = ModelInversion(max_iter=steps, window_length=steps + 1, learning_rate=1e-4, threshold=0.99, start="grey")
    names = [str(label) for label in range(CLASSES)]
    classifier = TensorFlowV2Classifier(
        model=keras.Sequential([model, keras.layers.Softmax()]),
        nb_classes=CLASSES,
        input_shape=(28, 28, 1),
        loss_object=keras.losses.CategoricalCrossentropy(),
        clip_values=(0.0, 1.0),
    )
    # Its stop rule is inverted: below a threshold of 1 in cost it never stops.
    attack = MIFace(
        classifier, max_iter=steps, window_length=steps + 1, threshold=1.0, learning_rate=1e-4, verbose=False
    )
    start = np.full((CLASSES, 28, 28, 1), 0.5, np.float32)

    def art() -> np.ndarray:
        return attack.infer(start, np.arange(CLASSES))

    def ours() -> np.ndarray:
        images = invert(config, model, TrainingFacts((28, 28, 1), names), seed=0)
        assert set(images.index["iterations"]) == {steps}
        return np.asarray(images.pixels[slice(0, CLASSES)])

    # By less than the rounding of a confidence, where the steps are few.
    assert _confidence(model, ours()) >= _confidence(model, art()) - 1e-6, "ART's images are more confident"
    bare = raw.gradients(model, start, np.arange(CLASSES), batch_size=CLASSES, steps=steps)
    name = f"MIFACE, {CLASSES} classes x {steps} steps"
    return [pair(name, art, ours, rounds=1 if quick else 3, floor=20.0, raw=bare)]


def _confidence(model: keras.Model, images: np.ndarray) -> float:
    """The mean confidence of each image in its own class."""
    probabilities = keras.ops.softmax(model(images, training=False))
    return float(np.asarray(probabilities).diagonal().mean())
