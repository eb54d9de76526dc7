"""The engine `art`: the Adversarial Robustness Toolbox, the reference that `compiled` is held against.

Its defaults that would change a result in silence are not used: labels are always given (else it attacks the model's
own predictions, and predicts the whole set to find them), the loss is taken on logits, and a gradient that is not
finite is reported (it would be replaced by zero).
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dioptra_assets.robustness.attacks import compiled
from dioptra_assets.robustness.attacks.art_starts import Starts
from dioptra_assets.robustness.attacks.base import AttackInput, PerturbBatch, Perturbed
from dioptra_assets.robustness.model_cache import made_of


def prepare(model: Any, class_count: int, make_attack: Callable[[Any], Any]) -> PerturbBatch:
    """Run an ART attack that is steered by the gradient of the loss against a Keras model that gives logits.

    Args:
        model: the model under attack.
        class_count: number of classes.
        make_attack: makes the ART attack from an ART classifier.

    Raises:
        RuntimeError: when Keras does not run on TensorFlow.
    """
    _need_tensorflow()
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


def _need_tensorflow() -> None:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"the engine art needs Keras on tensorflow, not on {keras.backend.backend()}: use the engine compiled"
        )


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


@dataclass(frozen=True)
class Needs:
    """How an ART attack has to be run.

    Attributes:
        alone: pass one image at a time.
        white_box: the attack follows gradients, so record where they are zero.
        probabilities: the attack expects softmax probabilities instead of logits.
        starts: it draws only its starting points, so each image of a batch gets its own generator.
    """

    alone: bool
    white_box: bool
    probabilities: bool
    starts: bool = False


def prepare_any(
    model: Any, class_count: int, make_attack: Callable[[Any], Any], needs: Needs, *, seed: int
) -> PerturbBatch:
    """Run any ART evasion attack against a Keras model that gives logits.

    ART draws from global generators. They are seeded by the seed and the position of the first image passed, and
    restored afterwards.

    Args:
        model: the model under attack.
        class_count: number of classes.
        make_attack: makes the ART attack from an ART classifier. It is called for each batch, because some attacks
            carry state over from one batch to the next.
        needs: how the attack has to be run.
        seed: seed of everything random.

    Raises:
        RuntimeError: Keras does not run on TensorFlow.
        ValueError: `make_attack` refuses, or, from the returned function, ART gives up on an image.
    """
    _need_tensorflow()
    watch, classifier = _counting_classifier(model, class_count, probabilities=needs.probabilities)
    with _seeded_generators([seed]):
        make_attack(classifier)  # so that parameters it refuses are known before any work
    at_start = made_of(model, "gradient check", lambda: _compiled_gradient_check(model, class_count))

    def perturb(batch: AttackInput) -> Perturbed:
        rows = len(batch.images)
        images, queries = batch.images.copy(), np.zeros(rows, np.int64)
        start = at_start(batch.images, batch.goals) if needs.white_box else {}
        finite = start.get("finite", np.ones(rows, bool)).copy()
        labels = np.eye(class_count, dtype=np.float32)[batch.goals]
        at_once = 1 if needs.alone else rows
        for first in range(0, rows, at_once):
            part = slice(first, first + at_once)
            if not finite[part].all():
                continue
            position = int(batch.positions[first])
            with _seeded_generators([seed, position]):
                attack = make_attack(classifier)
                watch.begin()
                if needs.starts and not needs.alone:
                    states = [np.random.RandomState(_words([seed, int(at)])).get_state() for at in batch.positions]
                    own = Starts(attack, watch, states, batch.goals)
                    with own.given():
                        made = _generate(attack, images.copy(), labels, position)
                    queries[:] = own.queries
                else:
                    made = _generate(attack, images[part].copy(), labels[part], position)
                    queries[part] = -(-watch.rows() // at_once)
            images[part] = np.clip(made, 0.0, 1.0, dtype=np.float32)
            finite[part] = watch.all_finite()
        return Perturbed(
            images=images,
            queries=queries,
            zero_gradient=start.get("zero_gradient", np.zeros(rows, bool)),
            finite=finite,
        )

    return perturb


def _generate(attack: Any, images: np.ndarray, labels: np.ndarray, position: int) -> np.ndarray:
    try:
        return attack.generate(x=images, y=labels)
    except ValueError as error:  # such as numbers that its parameters and this model together make too large
        raise ValueError(
            f"{type(attack).__name__} gave up at image {position}: {error} Change its parameters."
        ) from error


class _Watch:
    """Counts the images that go through a model, and notes whether all logits were finite.

    In TensorFlow's variables: ART calls the model eagerly, within compiled functions and from classifiers of its own.
    """

    def __init__(self) -> None:
        import tensorflow as tf

        self._tf = tf
        self._rows = tf.Variable(tf.constant(0, tf.int64), trainable=False)
        self._finite = tf.Variable(tf.constant(True), trainable=False)

    def see(self, logits: Any) -> None:
        tf = self._tf
        self._rows.assign_add(tf.shape(logits, out_type=tf.int64)[0])
        self._finite.assign(tf.logical_and(self._finite, tf.reduce_all(tf.math.is_finite(logits))))

    def begin(self) -> None:
        self._rows.assign(0)
        self._finite.assign(True)

    def rows(self) -> int:
        return int(self._rows.numpy())

    def all_finite(self) -> bool:
        return bool(self._finite.numpy())


def _counting_classifier(model: Any, class_count: int, *, probabilities: bool) -> tuple[_Watch, Any]:
    import keras
    import tensorflow as tf
    from art.estimators.classification import TensorFlowV2Classifier

    watch = _Watch()

    def forward(x: Any, training: bool = False) -> Any:
        logits = tf.cast(model(tf.cast(x, tf.float32), training=training), tf.float32)
        watch.see(logits)
        return tf.nn.softmax(logits) if probabilities else logits

    classifier = TensorFlowV2Classifier(
        model=forward,
        nb_classes=class_count,
        input_shape=tuple(model.input_shape[1:]),
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=not probabilities, reduction="sum"),
        clip_values=(0.0, 1.0),
        preprocessing=None,
    )
    # Else the attacks that follow gradients take their implementation on tensors, which has no momentum.
    classifier.all_framework_preprocessing = False
    return watch, classifier


@contextmanager
def _seeded_generators(seed: list[int]) -> Iterator[None]:
    """Python's and numpy's global generators with this seed, and as they were again afterwards.

    A generator made without a seed in the meantime, as HopSkipJump does, gets this one too.
    """
    before, python_before, random_state = np.random.get_state(), random.getstate(), np.random.RandomState
    words = _words(seed)

    class Seeded(random_state):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(words if seed is None else seed)

    np.random.seed(words)
    random.seed(words.tobytes())
    np.random.RandomState = Seeded
    try:
        yield
    finally:
        np.random.RandomState = random_state
        np.random.set_state(before)
        random.setstate(python_before)


def _words(seed: list[int]) -> np.ndarray:
    return np.random.SeedSequence(seed).generate_state(8)


def _compiled_gradient_check(model: Any, class_count: int) -> Callable[..., dict[str, np.ndarray]]:
    ops = compiled.keras_ops()

    def check(images: Any, goals: Any) -> dict[str, Any]:
        slope, logits = compiled.loss_gradient(model, images, goals, class_count)
        finite = ops.logical_and(compiled.all_of(ops.isfinite(slope)), ops.all(ops.isfinite(logits), axis=1))
        return {"zero_gradient": compiled.all_of(ops.equal(slope, 0.0)), "finite": finite}

    return compiled.compile_batches(check)
