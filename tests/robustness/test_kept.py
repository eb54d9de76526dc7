"""Small models stay loaded, large ones make room."""

from types import SimpleNamespace

import pytest

from dioptra_assets.robustness import kept
from dioptra_assets.robustness.kept import Kept, parameter_bytes


def model(parameters: int) -> SimpleNamespace:
    return SimpleNamespace(weights=[SimpleNamespace(shape=(parameters // 2, 2))])


def calls(sizes: list[int], asked: list[int]) -> list[int]:
    """Which of some models are loaded, in turn, when they are asked for."""
    loaded: list[int] = []

    def load(number: int) -> SimpleNamespace:
        loaded.append(number)
        return model(sizes[number])

    function = Kept(load, lambda _, value: value)
    for number in asked:
        assert parameter_bytes(function(number)) == 4 * sizes[number]
    return loaded


def test_twenty_small_models_are_loaded_once() -> None:
    assert calls([300_000] * 20, [*range(20)] * 3) == [*range(20)]


def test_large_models_make_room_and_the_last_two_stay() -> None:
    large = [200_000_000] * 4
    assert calls(large, [0, 1, 0, 1]) == [0, 1]
    assert calls(large, [0, 1, 2, 1, 2, 0]) == [0, 1, 2, 0]
    assert calls([100_000_000] * 4, [0, 1, 0, 2, 0, 1]) == [0, 1, 2, 1], "what was used last stays"


def test_there_is_an_end_to_the_number_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEEP_AT_MOST", 3)
    assert calls([1000] * 4, [0, 1, 2, 0, 3, 0, 1]) == [0, 1, 2, 3, 1]


def test_what_has_no_weights_takes_nothing() -> None:
    assert parameter_bytes(print) == 0
