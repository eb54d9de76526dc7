"""The evolution strategies on functions whose minimum is known, and what keeps one image's search from another's."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dioptra_assets.robustness.attacks import evolution
from dioptra_assets.robustness.attacks.evolution import CmaEs, DifferentialEvolution

pytestmark = pytest.mark.quick

STRATEGIES: list[Any] = [CmaEs, DifferentialEvolution]
Function = Callable[[np.ndarray], np.ndarray]


def generators(*positions: int) -> list[np.random.Generator]:
    return [np.random.default_rng([5, position]) for position in positions]


def sphere(points: np.ndarray) -> np.ndarray:
    return ((points - 0.37) ** 2).sum(axis=-1)


def lowest(strategy: Any, function: Function, generations: int) -> np.ndarray:
    """The lowest value each image's search comes to."""
    values = []
    for _ in range(generations):
        scores = function(strategy.ask())
        values.append(scores.min(axis=1))
        strategy.tell(scores)
    return np.min(values, axis=0)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_minimum_of_a_sphere_is_found_for_every_image(kind: Any) -> None:
    strategy = kind(generators(0, 1, 2), 6, kind.size(6))
    assert lowest(strategy, sphere, 120).max() < 1e-5


def test_cma_es_learns_a_valley_that_lies_across_the_axes() -> None:
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    stretch = 10.0 ** np.linspace(0, 4, 8)

    def valley(points: np.ndarray) -> np.ndarray:
        return (stretch * ((points - 0.45) @ axes) ** 2).sum(axis=-1)

    strategy = CmaEs(generators(0, 1), 8, 12)
    assert lowest(strategy, valley, 400).max() < 1e-8


def test_cma_es_learns_the_scales_of_many_axes() -> None:
    stretch = 10.0 ** np.linspace(0, 3, evolution.FULL_COVARIANCE + 1)

    def scaled(points: np.ndarray) -> np.ndarray:
        return (stretch * (points - 0.5) ** 2).sum(axis=-1)

    strategy = CmaEs(generators(0), len(stretch), 19)
    assert lowest(strategy, scaled, 1000)[0] < 1e-2 * scaled(np.full((1, 1, len(stretch)), 0.6))[0, 0]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_an_image_is_searched_alike_alone_and_beside_others_that_finish_earlier(kind: Any) -> None:
    beside, alone = kind(generators(0, 1, 2), 5, 12), kind(generators(1), 5, 12)
    for generation in range(12):
        if generation == 4:
            beside.keep(np.array([False, True, True]))
        if generation == 8:
            beside.keep(np.array([True, False]))
        many, one = beside.ask(), alone.ask()
        np.testing.assert_allclose(many[1 if generation < 4 else 0], one[0], rtol=0, atol=1e-12)
        beside.tell(np.round(sphere(many), 6))
        alone.tell(np.round(sphere(one), 6))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_candidates_stay_in_the_cube_wherever_the_search_is_drawn(kind: Any) -> None:
    strategy = kind(generators(0, 1), 4, 10)
    candidates = np.empty(0)
    for _ in range(60):
        candidates = strategy.ask()
        assert candidates.min() >= 0
        assert candidates.max() <= 1
        strategy.tell(-candidates.sum(axis=-1))
    assert candidates.mean() > 0.9


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_search_whose_scores_all_tie_begins_anew_and_the_others_go_on(kind: Any) -> None:
    strategy = kind(generators(0, 1), 3, 20)
    for _ in range(60):
        strategy.tell(sphere(strategy.ask()))
    scores = sphere(strategy.ask())
    if kind is DifferentialEvolution:  # there it is the members that tie, so all of them must be replaced
        scores = np.stack([np.full(20, -1.0), scores[1]])
    else:
        scores[0] = 0
    strategy.tell(scores)
    spread = strategy.ask().std(axis=1).mean(axis=1)
    # A search that begins near a face is reflected there, and then spreads over 0.18 of an edge.
    assert spread[0] > 0.1
    assert spread[1] < 0.01


def test_differential_evolution_starts_on_a_latin_hypercube() -> None:
    first = DifferentialEvolution(generators(0, 1), 7, 40).ask()
    slices = np.sort((first * 40).astype(int), axis=1)
    assert (slices == np.arange(40)[None, :, None]).all()
    assert not np.array_equal(first[0], first[1])


def test_a_trial_replaces_its_own_member_alone_and_only_when_it_is_better() -> None:
    strategy = DifferentialEvolution(generators(0), 4, 10)
    first = strategy.ask().copy()
    strategy.tell(np.arange(10.0)[None])
    trials = strategy.ask().copy()
    scores = np.arange(10.0)[None].copy()  # as good as before, which is not better
    scores[0, 3] = -1
    strategy.tell(scores)
    members = strategy._population[0]
    assert np.array_equal(members[3], trials[0, 3])
    assert np.array_equal(np.delete(members, 3, 0), np.delete(first[0], 3, 0))


def test_two_other_members_are_drawn_and_every_pair_is_as_likely() -> None:
    own, generator = np.arange(5), np.random.default_rng(0)
    pairs: Counter[tuple[int, ...]] = Counter()
    for _ in range(6000):
        first, second = evolution._two_others(generator, own)
        pairs.update(zip(own.tolist(), first.tolist(), second.tolist(), strict=True))
    assert len(pairs) == 5 * 4 * 3
    assert all(len(set(pair)) == 3 for pair in pairs)
    assert 400 < min(pairs.values()) <= max(pairs.values()) < 600


@pytest.mark.parametrize(("numbers", "cma", "de"), [(3, 7, 399), (15, 12, 390), (30, 14, 390), (784, 23, 784)])
def test_generations_are_as_large_as_in_art(numbers: int, cma: int, de: int) -> None:
    assert CmaEs.size(numbers) == cma
    assert DifferentialEvolution.size(numbers) == de
