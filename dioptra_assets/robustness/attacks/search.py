"""What the pixel and the threshold attack share: a search by an evolution strategy that sees scores alone.

A candidate is a row of whole numbers; what they mean is the attack's own affair (:class:`Changes`). The score of a
candidate is the margin in logits by which it still fails, so that a confident model is told from a less confident one
where probabilities round to 1. It is rounded to `GRAIN`: two candidates that differ by less tie, and a success survives
the rounding of a forward pass over a batch of another size.
"""

import importlib.util
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from dioptra_assets.robustness.attacks import art_engine, compiled
from dioptra_assets.robustness.attacks.base import Attack, AttackInput, PerturbBatch, Perturbed
from dioptra_assets.robustness.attacks.evolution import FULL_COVARIANCE, CmaEs, DifferentialEvolution, Strategy

GRAIN = 2.0**-12

# Of a whole batch only so many images are searched at once that their searches fit in this many bytes.
MOST_BYTES = 2**28
# Where an image has at most so many candidates their scores are remembered: grey images up to 32x32, one pixel.
MOST_REMEMBERED = 2**18
# A forward pass takes so many pixel values or rows, whichever is fewer.
VALUES_A_FORWARD = 2**21
ROWS_A_FORWARD = 512


@dataclass(frozen=True)
class Changes:
    """How a row of whole numbers changes an image.

    Attributes:
        levels: how many values each number takes, int [numbers]; a number lies in 0 to its levels - 1.
        apply: makes float32 [rows, height, width, channels] from images of that shape, which it may write to, and their
            numbers, [rows, numbers].
        start: where CMA-ES begins, a place in the range of every number, 0 to 1; None draws one.
    """

    levels: np.ndarray
    apply: Callable[[np.ndarray, np.ndarray], np.ndarray]
    start: float | None = None

    def few(self) -> bool:
        """Whether there are so few candidates that their scores are remembered."""
        return bool(np.log2(self.levels).sum() <= math.log2(MOST_REMEMBERED))


class SearchAttack(Attack, frozen=True, extra="forbid"):
    """Config of an attack that searches with an evolution strategy."""

    es: Literal[0, 1] = Field(description="Evolution strategy: 0 is CMA-ES, 1 is differential evolution.")
    max_iter: int = Field(
        default=100, ge=1, strict=True, description="Generations at most, at least 1; es 1 has one more, its first."
    )
    population: int | None = Field(
        default=None,
        ge=5,
        le=1_000_000,
        strict=True,
        description="Candidates a generation, at least 5. Left out, with n numbers searched for: 4 + 3 ln n with es 0, "
        "about 400 and at least n with es 1.",
    )

    @field_validator("population")
    @classmethod
    def _population_is_ours(cls, population: int | None, info: ValidationInfo) -> int | None:
        if population is not None and info.data.get("engine") == "art":
            raise ValueError(
                f"population is {population} with the engine art, which sets its own: use the engine compiled, or "
                "remove population"
            )
        return population

    def seeks(self) -> bool:
        """See the base class."""
        return True

    @abstractmethod
    def changes(self, image_shape: tuple[int, int, int]) -> Changes:
        """What this attack may do to an image of (height, width, channels).

        Raises:
            ValueError: where the budget does not fit such images.
        """

    @abstractmethod
    def art_attack(self, classifier: Any) -> Any:
        """The same attack of the Adversarial Robustness Toolbox."""

    def prepare(self, model: Any, *, seed: int, class_count: int) -> PerturbBatch:
        """See the base class.

        Raises:
            RuntimeError: with the engine art, es 0 and no package cma.
            ValueError: where the search of one image does not fit in memory.
        """
        shape = tuple(model.input_shape[1:])
        changes = self.changes(shape)
        if self.engine == "art":
            return self._prepare_art(model, changes, seed=seed, class_count=class_count)
        numbers = len(changes.levels)
        members = self.population or (CmaEs if self.es == 0 else DifferentialEvolution).size(numbers)
        at_once = max(1, MOST_BYTES // self._bytes_an_image(changes, members))

        def perturb(batch: AttackInput) -> Perturbed:
            parts = [
                self._search(model, batch.part(slice(first, first + at_once)), changes, members, seed)
                for first in range(0, len(batch.images), at_once)
            ]
            images, queries, finite, found = map(np.concatenate, zip(*parts, strict=True))
            return Perturbed(images, queries, np.zeros(len(images), bool), finite, {"found": found})

        return perturb

    def _prepare_art(self, model: Any, changes: Changes, *, seed: int, class_count: int) -> PerturbBatch:
        """ART's attack, one image at a time as it searches itself, against the probabilities it is made for.

        An image it fails on comes back to the last bit, and one that is where the attack wants it is not searched.
        With es 0 the package cma draws from the clock, so that nothing it finds can be repeated.
        """
        if self.es == 0 and importlib.util.find_spec("cma") is None:
            raise RuntimeError(
                "es is 0 with the engine art, which needs the package cma: install cma, or use the engine compiled"
            )
        needs = art_engine.Needs(alone=True, white_box=False, probabilities=True)
        search = art_engine.prepare_any(model, class_count, self.art_attack, needs, seed=seed)

        def perturb(batch: AttackInput) -> Perturbed:
            images = batch.images.copy()
            before = Scorer(model, images, batch.goals, changes, targeted=self.targeted)
            found, finite, queries = before.clean() < 0, before.finite, before.queries
            for row in np.flatnonzero(~found & finite):
                one = batch.part(slice(row, row + 1))
                with warnings.catch_warnings(action="ignore"):  # both ART and cma divide by zero, and say so
                    made = search(one)
                after = Scorer(model, made.images, one.goals, changes, targeted=self.targeted)
                found[row] = after.clean()[0] < 0
                finite[row] = made.finite[0] & after.finite[0]
                queries[row] += made.queries[0]
                if found[row]:
                    images[row] = made.images[0]
            return Perturbed(images, queries, np.zeros(len(images), bool), finite, {"found": found})

        return perturb

    def _bytes_an_image(self, changes: Changes, members: int) -> int:
        numbers = len(changes.levels)
        if self.es == 0:  # float64: moves, candidates and intermediate results; matrices
            held = 8 * (6 * members * numbers + (4 * numbers**2 if numbers <= FULL_COVARIANCE else 8 * numbers))
        else:  # float32: population, trials and intermediate results
            held = 4 * 5 * members * numbers
        held += 4 * int(changes.levels.prod()) if changes.few() else 0
        if held > 16 * MOST_BYTES:
            raise ValueError(
                f"{self.method} with es {self.es} searches {members} candidates of {numbers} numbers per image, which "
                f"takes {held / 2**30:.0f} GB: set es to 0, or population to at most "
                f"{max(5, 16 * MOST_BYTES // (20 * numbers))}"
            )
        return held

    def _search(
        self, model: Any, batch: AttackInput, changes: Changes, members: int, seed: int
    ) -> tuple[np.ndarray, ...]:
        scorer = Scorer(model, batch.images, batch.goals, changes, targeted=self.targeted)
        images = batch.images.copy()
        found = scorer.clean() < 0
        searched = np.flatnonzero(~found & scorer.finite)
        generators = [np.random.default_rng([seed, position]) for position in batch.positions[searched].tolist()]
        numbers = len(changes.levels)
        strategy: Strategy = (
            CmaEs(generators, numbers, members, start=changes.start)
            if self.es == 0
            else DifferentialEvolution(generators, numbers, members)
        )
        for _ in range(self.max_iter + self.es):
            if not len(searched):
                break
            candidates = changes.levels * strategy.ask()
            tried = np.minimum(candidates.astype(np.int32), changes.levels - 1)
            scores = scorer(searched, tried)
            best = scores.argmin(axis=1)
            won = scores.min(axis=1) < 0
            images[searched[won]] = changes.apply(images[searched[won]], tried[won, best[won]])
            found[searched[won]] = True
            strategy.tell(scores)
            stays = ~won & scorer.finite[searched]
            if not stays.all():
                strategy.keep(stays)
                searched = searched[stays]
        return images, scorer.queries, scorer.finite, found


class Scorer:
    """Scores candidates of some images, counts what it asked the model, and notes where logits were not finite.

    Attributes:
        queries: int64 [images]: images the model was asked for.
        finite: bool [images]: all logits were finite.
    """

    def __init__(self, model: Any, images: np.ndarray, goals: np.ndarray, changes: Changes, *, targeted: bool) -> None:
        self._images, self._goals, self._changes = images, goals, changes
        self._margins = compiled.compiled_margins(model, targeted)
        self.queries = np.zeros(len(images), np.int64)
        self.finite = np.ones(len(images), bool)
        self._rows = min(ROWS_A_FORWARD, max(8, VALUES_A_FORWARD // math.prod(images.shape[1:])))
        self._known: np.ndarray | None = None
        if changes.few():
            self._known = np.full((len(images), int(changes.levels.prod())), np.nan, np.float32)

    def clean(self) -> np.ndarray:
        """The scores of the images themselves, [images]."""
        return self._scores(np.arange(len(self._images)), None)

    def __call__(self, images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The scores of the candidates `numbers`, [images, members, numbers], of the images at these places.

        Returns:
            float32 [images, members], infinite where a logit was not finite.
        """
        owners = np.repeat(images, numbers.shape[1])
        flat = numbers.reshape(len(owners), -1)
        if self._known is None:
            return self._scores(owners, flat).reshape(numbers.shape[:2])
        codes = np.ravel_multi_index(tuple(flat.T), tuple(self._changes.levels))
        unknown = np.flatnonzero(np.isnan(self._known[owners, codes]))
        _, first = np.unique(owners[unknown] * self._known.shape[1] + codes[unknown], return_index=True)
        fresh = unknown[first]
        self._known[owners[fresh], codes[fresh]] = self._scores(owners[fresh], flat[fresh])
        return self._known[owners, codes].reshape(numbers.shape[:2])

    def _scores(self, owners: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
        scores = np.empty(len(owners), np.float32)
        for first in range(0, len(owners), self._rows):
            rows = slice(first, first + self._rows)
            images = self._images[owners[rows]]
            if numbers is not None:
                images = self._changes.apply(images, numbers[rows])
            result = self._margins(images, self._goals[owners[rows]])
            scores[rows] = np.where(result["finite"], np.rint(result["margin"] / GRAIN) * GRAIN, np.inf)
            self.finite[owners[rows][~result["finite"]]] = False
        self.queries += np.bincount(owners, minlength=len(self.queries))
        return scores
