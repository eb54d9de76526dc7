"""The engine `art`: the Adversarial Robustness Toolbox, the reference that `compiled` is held against.

Its defaults that would change a result in silence are not used: labels are always given (else it attacks the model's
own predictions, and predicts the whole set to find them), the loss is taken on logits, and a gradient that is not
finite is reported (it would be replaced by zero).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from dioptra_assets.robustness.attacks.base import AttackInput, PerturbBatch, Perturbed


def prepare(model: Any, class_count: int, make_attack: Callable[[Any], Any]) -> PerturbBatch:
    """Run an ART attack that is steered by the gradient of the loss against a Keras model that gives logits.

    Args:
        model: the model under attack.
        class_count: number of classes.
        make_attack: makes the ART attack from an ART classifier.

    Raises:
        RuntimeError: when Keras does not run on TensorFlow.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"the engine art needs Keras on tensorflow, not on {keras.backend.backend()}: use the engine compiled"
        )
    classifier = _watched_classifier(model, class_count)
    attack = make_attack(classifier)

    def perturb(batch: AttackInput) -> Perturbed:
        rows = len(batch.images)
        classifier.watch(rows)
        images = attack.generate(x=batch.images, y=np.eye(class_count, dtype=np.float32)[batch.goals])
        return Perturbed(
            # ART adds the projected change to the image last, which may leave the box by one rounding.
            images=np.clip(images, 0.0, 1.0, dtype=np.float32),
            queries=np.full(rows, classifier.queries, np.int64),
            zero_gradient=classifier.zero_gradient,
            finite=classifier.finite,
        )

    return perturb


def _watched_classifier(model: Any, class_count: int) -> Any:
    """An ART classifier that notes, image by image, whether logits and gradients were finite and gradients zero."""
    import keras
    from art.estimators.classification import TensorFlowV2Classifier

    logits: list[Any] = []

    def forward(x: Any, training: bool = False) -> Any:
        logits[:] = [model(x, training=training)]
        return logits[0]

    class WatchedClassifier(TensorFlowV2Classifier):
        def watch(self, rows: int) -> None:
            self.queries = 0
            self.finite = np.ones(rows, bool)
            self.zero_gradient = np.ones(rows, bool)

        def loss_gradient(self, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
            gradient = super().loss_gradient(x, y, *args, **kwargs)
            self.queries += 1
            self.finite &= np.isfinite(gradient).all(axis=(1, 2, 3)) & np.isfinite(logits[0].numpy()).all(axis=1)
            self.zero_gradient &= (gradient == 0).all(axis=(1, 2, 3))
            # In double precision ART's own sums and products round like those of the engine compiled.
            return gradient.astype(np.float64)

    return WatchedClassifier(
        model=forward,
        nb_classes=class_count,
        input_shape=tuple(model.input_shape[1:]),
        # Summed, as in the engine compiled: an averaged loss makes an image's gradient depend on the size of its batch.
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        clip_values=(0.0, 1.0),
    )
