"""Models and what was compiled of them stay while they are small; large ones make room, with all made of them."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from dioptra_assets.robustness import model_cache
from dioptra_assets.robustness.attacks import parse_attack, perturb_set
from dioptra_assets.robustness.defences import SpatialSmoothing
from dioptra_assets.robustness.defences.adaptive import defended_model
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.inversion.miface import ModelInversion, TrainingFacts, invert
from dioptra_assets.robustness.model_cache import KeptModels, Loaded, parameter_bytes
from tests.robustness.attacks.conftest import linear_model

CLASSES = ("a", "b", "c")


class Weight:
    def __init__(self, parameters: int) -> None:
        self.shape = (parameters // 2, 2)


class Model:
    def __init__(self, parameters: int) -> None:
        self.weights = [Weight(parameters)]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> KeptModels:
    """The models that this process keeps, none yet."""
    found = KeptModels()
    monkeypatch.setattr(model_cache, "_models", found)
    return found


def calls(sizes: list[int], asked: list[int]) -> list[int]:
    """Which of some models are loaded, in turn, when they are asked for."""
    loaded: list[int] = []

    def load(number: int) -> Model:
        loaded.append(number)
        return Model(sizes[number])

    function = Loaded(load)
    for number in asked:
        assert parameter_bytes(function(number)) == 4 * sizes[number]
    return loaded


def test_twenty_small_models_are_loaded_once(models: KeptModels) -> None:
    assert calls([300_000] * 20, [*range(20)] * 3) == [*range(20)]


def test_large_models_make_room_and_the_last_two_stay(models: KeptModels) -> None:
    large = [200_000_000] * 4
    assert calls(large, [0, 1, 0, 1]) == [0, 1]
    assert calls(large, [0, 1, 2, 1, 2, 0]) == [0, 1, 2, 0]
    assert calls([100_000_000] * 4, [0, 1, 0, 2, 0, 1]) == [0, 1, 2, 1], "what was used last stays"


def test_there_is_an_end_to_the_number_of_models(models: KeptModels) -> None:
    calls([1000] * 400, [*range(400)])
    assert 200 < len(models) <= model_cache.KEEP_BYTES // model_cache.OVERHEAD_BYTES


def test_what_was_made_of_a_model_counts_and_has_an_end() -> None:
    models = KeptModels(20 * model_cache.OVERHEAD_BYTES)
    first, second, third = Model(2), Model(2), Model(2)
    made = [models.of(first, number, lambda number=number: [number]) for number in range(40)]
    assert models.of(first, 39, list) is made[39], "the last are kept"
    assert models.of(first, 0, lambda: "anew") == "anew", "the first had to go"
    models.use(second)
    models.use(third)
    assert len(models) == 3
    for number in range(10):
        models.of(second, number, list)
    assert len(models) == 2, "the model used least lately makes room for what is made of another"


def test_a_model_that_somebody_still_has_is_not_loaded_twice(models: KeptModels) -> None:
    load = Loaded(lambda number: Model(400_000_000))
    first = load(1)
    for number in (2, 3, 4):
        load(number)
    assert load(1) is first


def test_what_has_no_weights_takes_nothing() -> None:
    assert parameter_bytes(print) == 0


def test_ten_models_under_attack_with_a_budget_of_two_leave_two(monkeypatch: pytest.MonkeyPatch) -> None:
    models = KeptModels(0)
    monkeypatch.setattr(model_cache, "_models", models)
    generator = np.random.default_rng(0)
    images = ImageSet.from_arrays(generator.random((3, 4, 4, 1), np.float32), [0, 1, 2], CLASSES)
    attacks = [
        {"method": "fgm", "eps": 0.1},
        {"method": "pgd", "eps": 0.1, "steps": 2},
        {"method": "square", "eps": 0.1, "max_queries": 5},
        {"method": "art", "attack": "FastGradientMethod", "parameters": {"eps": 0.1}},
    ]
    seen: list[weakref.ref[Any]] = []
    for number in range(10):
        model = linear_model(generator.normal(size=(16, 3)))
        seen.append(weakref.ref(model))
        for attack in attacks[: None if number == 0 else 1]:
            list(perturb_set(parse_attack(attack), model, images, seed=0, class_count=3))
        list(
            perturb_set(
                parse_attack(attacks[0]), defended_model(model, SpatialSmoothing(), 0), images, seed=0, class_count=3
            )
        )
        predict(model, images)
        if number == 0:
            invert(ModelInversion(max_iter=2), model, TrainingFacts((4, 4, 1), CLASSES), seed=0)
        del model
    gc.collect()
    assert len(models) == 2
    assert [number for number, model in enumerate(seen) if model() is not None] == [8, 9]
