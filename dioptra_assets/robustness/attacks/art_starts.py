"""Attacks of ART that draw where they start, in batches: each image from a generator of its own.

ART draws the starts of a batch from one global generator, in the order of the images that still stand, so that what an
image gets depends on the others of its batch. Here each image has the generator that it would have if it were given
alone. What else ties the images of a batch together is undone: a loss that is averaged over them, and a stop when the
loss of all is exactly zero.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

# The modules of ART that draw starts, each by a name of its own for the same function.
DRAWING = tuple(
    f"art.attacks.evasion.{name}"
    for name in ("auto_projected_gradient_descent", "auto_conjugate_gradient", "fast_gradient")
)
SPHERE = "random_sphere"


class Starts:
    """The starts of one batch, and the queries of each of its images.

    Attributes:
        queries: int64 [rows], how often each image went through the model.
    """

    def __init__(self, attack: Any, watch: Any, states: Sequence[Any], goals: np.ndarray) -> None:
        self.queries = np.zeros(len(goals), np.int64)
        self._attack = attack
        self._watch = watch
        self._states = list(states)
        self._goals = goals
        self._all = np.arange(len(goals))
        self._standing = self._all
        self._seen = 0

    @contextmanager
    def given(self) -> Iterator[None]:
        """Have the attack draw its starts here until the body ends."""
        estimator = self._attack.estimator
        sphere, predict, compute_loss = _modules()[0].random_sphere, estimator.predict, estimator.compute_loss

        def own_sphere(nb_points: int, nb_dims: int, radius: Any, norm: Any) -> np.ndarray:
            self._count()
            if nb_points == len(self._all):
                self._standing = self._all
            assert len(self._standing) == nb_points, "the images that ART attacks are those that stand"
            return np.concatenate([self._drawn(int(row), sphere, nb_dims, radius, norm) for row in self._standing])

        def watched_predict(x: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
            self._count()
            logits = predict(x, *args, **kwargs)
            whole = len(x) == len(self._all)
            self._count(self._all if whole else self._standing)
            if whole:
                self._standing = np.flatnonzero((logits.argmax(axis=1) == self._goals) != self._attack.targeted)
            return logits

        def positive_loss(*args: Any, **kwargs: Any) -> np.ndarray:
            loss = compute_loss(*args, **kwargs)
            return np.where(loss == 0, np.finfo(loss.dtype).tiny, loss)

        estimator.predict, estimator.compute_loss = watched_predict, positive_loss
        if getattr(estimator.loss_object, "reduction", None) == "mean":
            estimator.loss_object.reduction = "sum"  # of one image alone they are the same
        for module in _modules():
            setattr(module, SPHERE, own_sphere)
        try:
            yield
            self._count()
        finally:
            for module in _modules():
                setattr(module, SPHERE, sphere)
            # The methods of the class again: the estimator may be one for all batches.
            del estimator.predict, estimator.compute_loss

    def _drawn(self, row: int, sphere: Any, nb_dims: int, radius: Any, norm: Any) -> np.ndarray:
        np.random.set_state(self._states[row])
        point = sphere(1, nb_dims, radius, norm)
        self._states[row] = np.random.get_state()
        return point

    def _count(self, rows: np.ndarray | None = None) -> None:
        """What has gone through the model since it was last asked, was these images, by default those that stand."""
        rows = self._standing if rows is None else rows
        new, self._seen = self._watch.rows() - self._seen, self._watch.rows()
        if new:
            self.queries[rows] += -(-new // len(rows))


def _modules() -> list[Any]:
    return [importlib.import_module(name) for name in DRAWING]
