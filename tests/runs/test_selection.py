"""Some assets, some cells: what is selected, and how much work that is expected to be."""

from typing import Any

import dagster as dg
import pytest

from dioptra_assets.runs.selection import Selection, SelectionError, expected, select
from tests import made_up_cells as made_up

pytestmark = pytest.mark.quick

ORDER = ("training_set", "testing_set", "model", "adversarial_set")
KEYS = [dg.AssetKey(["made_up", name]) for name in ORDER]


@pytest.fixture(scope="module")
def graph() -> Any:
    return made_up.defs().resolve_asset_graph()


def selected(graph: Any, assets: list[str], cells: list[str]) -> dict[str, set[str | None] | None]:
    return {key.path[-1]: found for key, found in select(graph, KEYS, Selection(assets, cells)).items()}


def test_an_asset_comes_with_what_it_is_made_from(graph: Any) -> None:
    assert selected(graph, ["model"], []) == {"training_set": None, "model": None}
    assert selected(graph, ["made_up/model"], []) == selected(graph, ["model"], [])


def test_a_plus_adds_what_is_made_from_it(graph: Any) -> None:
    assert list(selected(graph, ["model+"], [])) == list(ORDER)


def test_a_cell_comes_with_the_cells_that_it_is_made_from(graph: Any) -> None:
    found = selected(graph, ["adversarial_set"], ["le_net|weak"])
    assert found == {
        "training_set": None,
        "testing_set": None,
        "model": {"le_net"},
        "adversarial_set": {"le_net|weak"},
    }


def test_a_star_stands_for_anything(graph: Any) -> None:
    found = selected(graph, ["adversarial_set"], ["*|weak"])
    assert found["adversarial_set"] == {"le_net|weak", "shallow_net|weak"}


def test_cells_alone_are_looked_for_in_every_asset(graph: Any) -> None:
    assert selected(graph, [], ["le_net"]) == {"training_set": None, "model": {"le_net"}}


def test_without_a_selection_everything_is_selected(graph: Any) -> None:
    assert selected(graph, [], []) == dict.fromkeys(ORDER)


@pytest.mark.parametrize(
    ("assets", "cells", "sentence"),
    [
        (["modl"], [], "experiment 'made_up' has no asset 'modl', available: model"),
        (["model"], ["nope"], "made_up/model has no cell 'nope', available: le_net, shallow_net"),
        (["testing_set"], ["le_net"], "made_up/testing_set has a single cell without a key: leave out --cell 'le_net'"),
    ],
)
def test_what_there_is_not_is_named_beside_what_there_is(
    graph: Any, assets: list[str], cells: list[str], sentence: str
) -> None:
    with pytest.raises(SelectionError) as raised:
        select(graph, KEYS, Selection(assets, cells))
    assert str(raised.value) == sentence


def test_what_is_made_from_a_stale_cell_is_expected_too(graph: Any) -> None:
    architectures, attacks = ("le_net", "shallow_net"), ("strong", "weak")
    cells: dict[dg.AssetKey, list[dict[str, str]]] = {
        KEYS[0]: [{}],
        KEYS[1]: [{}],
        KEYS[2]: [{"architecture": one} for one in architectures],
        KEYS[3]: [{"architecture": one, "attack": other} for one in architectures for other in attacks],
    }
    nothing: dict[dg.AssetKey, list[dict[str, str]]] = {key: [] for key in KEYS}
    stale = {**nothing, KEYS[2]: [{"architecture": "le_net"}]}
    assert list(expected(graph, stale, cells).values()) == [0, 0, 1, 2]
    assert list(expected(graph, {**stale, KEYS[0]: [{}]}, cells).values()) == [1, 0, 2, 4]
