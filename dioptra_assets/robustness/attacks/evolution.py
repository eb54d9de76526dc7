"""Two evolution strategies that search the unit cube for many images at once.

Both have one face: `ask` gives every image a generation of candidates, `tell` takes their scores (low is good), `keep`
drops the images that are done. Each image has its own generator and reads no other image's numbers, so what is found
for it does not depend on which images are searched beside it. Only comparisons of scores count, never their values.

A generation whose scores all tie has nothing to teach: the search has collapsed to one candidate, or stands where
nothing changes the score. It then begins anew for that image, as restarts do in Auger and Hansen 2005 (A restart CMA
evolution strategy with increasing population size), with the population it had.

Why: docs/decisions/0014-own-evolution-strategies.md
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Above this many dimensions CMA-ES keeps the diagonal of its covariance alone: in the hundred generations of an attack
# a whole matrix of this size learns next to nothing, and takes dimensions ** 3 steps to decompose.
FULL_COVARIANCE = 128

Generators = Sequence[np.random.Generator]


class Strategy(Protocol):
    """A search of the unit cube for several images side by side."""

    def ask(self) -> np.ndarray:
        """The next candidates, [images, members, dimensions] in [0, 1]; may be written to by nobody."""
        ...

    def tell(self, scores: np.ndarray) -> None:
        """The scores of the candidates last asked for, [images, members], finite; low is good."""
        ...

    def keep(self, images: np.ndarray) -> None:
        """Go on with these images alone, bool [images]."""
        ...


class DifferentialEvolution:
    """DE/best/1/bin (Storn and Price 1997, Journal of Global Optimization 11, 341-359) without crossover.

    As in ART: the first generation is a Latin hypercube, each trial is the best member plus the difference of two
    others times a factor drawn from [0.5, 1] once a generation, a value out of the box is drawn again, and a trial
    replaces the member of its own place when its score is lower.
    """

    def __init__(self, generators: Generators, dimensions: int, members: int) -> None:
        self._generators = list(generators)
        shape = (len(self._generators), members, dimensions)
        self._population = np.empty(shape, np.float32)
        self._scores = np.empty(shape[:2])
        self._fresh = np.ones(shape[0], bool)
        self._begin(self._fresh)

    @staticmethod
    def size(dimensions: int) -> int:
        """The members ART gives a search: 400, made a multiple of the dimensions, and at least one a dimension."""
        return max(5, max(1, 400 // dimensions) * dimensions)

    def ask(self) -> np.ndarray:
        """See :class:`Strategy`."""
        if self._fresh.all():
            self._trials = self._population.copy()
            return self._trials
        images, members, _ = self._population.shape
        factor = np.empty((images, 1, 1), np.float32)
        first, second = np.empty((2, images, members), np.int64)
        own = np.arange(members)
        for image, generator in enumerate(self._generators):
            factor[image] = generator.uniform(0.5, 1.0)
            first[image], second[image] = _two_others(generator, own)
        rows = np.arange(images)
        best = self._population[rows, self._scores.argmin(axis=1)]
        trials = self._population[rows[:, None], first]
        trials -= self._population[rows[:, None], second]
        trials *= factor
        trials += best[:, None]
        outside = (trials < 0) | (trials > 1)
        for image, generator in enumerate(self._generators):
            trials[image][outside[image]] = generator.random(np.count_nonzero(outside[image]), np.float32)
        trials[self._fresh] = self._population[self._fresh]
        self._trials = trials
        return trials

    def tell(self, scores: np.ndarray) -> None:
        """See :class:`Strategy`."""
        better = (scores < self._scores) | self._fresh[:, None]
        self._population[better] = self._trials[better]
        self._scores[better] = scores[better]
        self._fresh = self._scores.max(axis=1) == self._scores.min(axis=1)
        self._begin(self._fresh)

    def keep(self, images: np.ndarray) -> None:
        """See :class:`Strategy`."""
        self._generators = _kept(self._generators, images)
        self._population, self._scores = self._population[images], self._scores[images]
        self._fresh = self._fresh[images]

    def _begin(self, images: np.ndarray) -> None:
        _, members, dimensions = self._population.shape
        places = np.tile(np.arange(members)[:, None], dimensions)
        for image in np.flatnonzero(images):
            generator = self._generators[image]
            drawn = generator.random((members, dimensions), np.float32)
            self._population[image] = (generator.permuted(places, axis=0) + drawn) / members


class CmaEs:
    """CMA-ES with negative weights (Hansen 2016, arXiv 1604.00772, appendix A), its constants from table 1 there.

    The root of the covariance is its Cholesky factor, not the symmetric one (Krause, Arbones and Igel 2016, NIPS 29,
    section 3): what was drawn is then the whitened move, and no eigenvectors are needed.

    Above `FULL_COVARIANCE` dimensions only the diagonal of the covariance is kept and learns (dimensions + 2) / 3 times
    as fast: sep-CMA-ES (Ros and Hansen 2008, PPSN X, 296-305). The search is not bounded: a candidate is reflected at
    the faces of the cube.

    Args:
        generators: one an image.
        dimensions: of the cube.
        members: candidates a generation, at least 4.
        start: where every image's search begins, in [0, 1]; None draws a place for each, and so does every restart.
        step: the first step size, in edges of the cube.
    """

    def __init__(
        self, generators: Generators, dimensions: int, members: int, start: float | None = None, step: float = 0.3
    ) -> None:
        self._generators = list(generators)
        self._members, self._step = members, step
        self._full = dimensions <= FULL_COVARIANCE
        self._constants(dimensions)
        images = len(self._generators)
        self._mean = np.empty((images, dimensions))
        self._sigma, self._generation = np.empty(images), np.empty(images, np.int64)
        self._path, self._sigma_path = np.empty((2, images, dimensions))
        self._covariance = np.empty((images, dimensions, dimensions) if self._full else (images, dimensions))
        self._begin(np.ones(images, bool), start)

    @staticmethod
    def size(dimensions: int) -> int:
        """The members of a generation, 4 + 3 ln(dimensions)."""
        return 4 + math.floor(3 * math.log(dimensions))

    def ask(self) -> np.ndarray:
        """See :class:`Strategy`."""
        shape = (self._members, self._mean.shape[1])
        self._drawn = np.stack([generator.standard_normal(shape) for generator in self._generators])
        if self._full:
            self._moves = self._drawn @ np.linalg.cholesky(self._covariance).swapaxes(1, 2)
        else:
            self._moves = self._drawn * np.sqrt(self._covariance)[:, None]
        candidates = self._mean[:, None] + self._sigma[:, None, None] * self._moves
        return 1 - np.abs(1 - np.abs(candidates) % 2)

    def tell(self, scores: np.ndarray) -> None:
        """See :class:`Strategy`."""
        dimensions = self._mean.shape[1]
        order = np.argsort(scores, axis=1, kind="stable")
        drawn, moves = (np.take_along_axis(kind, order[:, :, None], axis=1) for kind in (self._drawn, self._moves))
        drawn_step, step = (np.einsum("m,imd->id", np.maximum(self._weights, 0), kind) for kind in (drawn, moves))
        self._mean += self._sigma[:, None] * step
        self._generation += 1

        self._sigma_path *= 1 - self._c_sigma
        self._sigma_path += math.sqrt(self._c_sigma * (2 - self._c_sigma) * self._mass) * drawn_step
        length = np.linalg.norm(self._sigma_path, axis=1) / self._expected
        self._sigma *= np.exp(np.minimum(1, self._c_sigma / self._damping * (length - 1)))
        started = np.sqrt(1 - (1 - self._c_sigma) ** (2 * (self._generation + 1)))
        moving = length / started < 1.4 + 2 / (dimensions + 1)

        self._path *= 1 - self._c_path
        self._path += moving[:, None] * math.sqrt(self._c_path * (2 - self._c_path) * self._mass) * step
        squares = np.maximum((drawn**2).sum(axis=2), 1e-20)
        weights = np.where(self._weights >= 0, self._weights, self._weights * dimensions / squares)
        stalled = ~moving * self._c_path * (2 - self._c_path)
        kept = 1 + self._c_one * stalled - self._c_one - self._c_rank * self._weights.sum()
        if self._full:
            one = self._path[:, :, None] * self._path[:, None, :]
            rank = (moves * weights[:, :, None]).swapaxes(1, 2) @ moves
        else:
            one = self._path**2
            rank = np.einsum("im,imd->id", weights, moves**2)
        self._covariance *= kept.reshape(-1, *[1] * (self._covariance.ndim - 1))
        self._covariance += self._c_one * one + self._c_rank * rank
        self._begin(scores.max(axis=1) == scores.min(axis=1), None)

    def keep(self, images: np.ndarray) -> None:
        """See :class:`Strategy`."""
        self._generators = _kept(self._generators, images)
        self._mean, self._sigma, self._generation = self._mean[images], self._sigma[images], self._generation[images]
        self._path, self._sigma_path = self._path[images], self._sigma_path[images]
        self._covariance = self._covariance[images]

    def _begin(self, images: np.ndarray, start: float | None) -> None:
        dimensions = self._mean.shape[1]
        for image in np.flatnonzero(images):
            self._mean[image] = self._generators[image].random(dimensions) if start is None else start
        self._sigma[images], self._generation[images] = self._step, 0
        self._path[images] = self._sigma_path[images] = 0
        self._covariance[images] = np.eye(dimensions) if self._full else 1

    def _constants(self, n: int) -> None:
        raw = math.log((self._members + 1) / 2) - np.log(np.arange(1, self._members + 1))
        good, bad = raw[: self._members // 2], raw[self._members // 2 :]
        mass, bad_mass = (part.sum() ** 2 / (part**2).sum() for part in (good, bad))
        self._mass = mass
        self._c_path = (4 + mass / n) / (n + 4 + 2 * mass / n)
        self._c_sigma = (mass + 2) / (n + mass + 5)
        self._damping = 1 + 2 * max(0, math.sqrt((mass - 1) / (n + 1)) - 1) + self._c_sigma
        faster = 1 if self._full else (n + 2) / 3
        one = faster * 2 / ((n + 1.3) ** 2 + mass)
        rank = min(1 - one, faster * 2 * (0.25 + mass + 1 / mass - 2) / ((n + 2) ** 2 + mass))
        self._c_one, self._c_rank = one, rank
        # Bounds on the negative weights that keep the covariance positive.
        least = min(1 + one / rank, 1 + 2 * bad_mass / (mass + 2), (1 - one - rank) / (n * rank))
        self._weights = np.where(raw >= 0, raw / raw[raw >= 0].sum(), least * raw / -raw[raw < 0].sum())
        self._expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))


def _two_others(generator: np.random.Generator, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each member two other members, neither itself nor each other, all pairs equally likely."""
    members = len(own)
    first = (own + generator.integers(1, members, members)) % members
    second = generator.integers(0, members - 2, members)
    low, high = np.minimum(own, first), np.maximum(own, first)
    second += second >= low
    second += second >= high
    return first, second


def _kept(generators: list[np.random.Generator], images: np.ndarray) -> list[np.random.Generator]:
    return [generator for generator, stays in zip(generators, images, strict=True) if stays]
