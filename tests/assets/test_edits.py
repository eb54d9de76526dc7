"""After any ordinary edit one `materialize` ends with everything fresh and a report of what the file says now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from resources.store import Cell, CellStore
from resources.tables import read_table
from tests.made_up import Home

GATES = [{"rule": "robust_accuracy >= 1 for fgm_0.3", "severity": "warn"}]
ARCHITECTURES = {"le_net": {"epochs": 1}, "shallow_net": {"epochs": 1}}
EXPERIMENT: Mapping[str, Any] = {
    "seed": 7,
    "data": {"source": "digits", "image_size": [8, 8], "test_fraction": 0.1},
    "architectures": ARCHITECTURES,
    "attacks": {"fgm_0.3": {"method": "fgm", "eps": 0.3}, "weak": {"method": "fgm", "eps": 0.05}},
    "gates": GATES,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home.new(tmp_path_factory.mktemp("made_up") / "home")
    home.write(EXPERIMENT)
    assert not home.materialize()["failed"]
    return home


@pytest.fixture
def home(finished: Home, tmp_path: Path) -> Home:
    return finished.copy(tmp_path / "home")


def edited(**sections: Any) -> dict[str, Any]:
    return {**EXPERIMENT, **sections}


def whole(home: Home, attributes: Mapping[str, Any]) -> str:
    """Materialize what a file says, hold that everything is fresh then; the report and the tables as text."""
    home.write(attributes)
    launched = home.materialize()
    assert (launched["failed"], launched["skipped"]) == ({}, [])
    seen = home.look()
    assert seen["stale"] == []
    store = CellStore(str(home.folder / "store"))
    tables = [store.open(Cell(f"tiny/{name}")) for name in ("transfer_matrix", "security_curves", "sanity")]
    return seen["report"] + "".join(read_table(one).to_csv() for one in tables)


def test_another_number_of_epochs(home: Home) -> None:
    whole(home, edited(architectures={**ARCHITECTURES, "le_net": {"epochs": 2}}))


def test_an_architecture_more_and_less_again(home: Home) -> None:
    third = {"architecture": "shallow_net", "epochs": 2}
    assert "third" in whole(home, edited(architectures={**ARCHITECTURES, "third": third}))
    assert "third" not in whole(home, EXPERIMENT)


def test_an_attack_less(home: Home) -> None:
    said = whole(home, edited(attacks={"fgm_0.3": EXPERIMENT["attacks"]["fgm_0.3"]}))
    assert "weak" not in said.replace("is weak", "").replace("weaker", "")


def test_gates_that_are_others_or_gone(home: Home) -> None:
    assert "asr &gt;= 0 for weak" in whole(home, edited(gates=[*GATES, "asr >= 0 for weak"]))
    assert "What was asked of each model" not in whole(home, edited(gates=[]))


def test_another_description_and_another_order(home: Home) -> None:
    turned = dict(reversed(ARCHITECTURES.items()))
    said = whole(home, edited(description="As it is told now.", architectures=turned))
    assert "As it is told now." in said


def test_a_seed_that_changes_no_pixel_stands_in_every_number(home: Home) -> None:
    weak = {"method": "fgm", "eps": 0.05, "seed": 12345}
    whole(home, edited(attacks={**EXPERIMENT["attacks"], "weak": weak}))
    matrix = read_table(CellStore(str(home.folder / "store")).open(Cell("tiny/transfer_matrix")))
    assert set(matrix.loc[matrix["attack"] == "weak", "seed"]) == {12345}


def test_an_architecture_that_never_worked_leaves_no_trace_once_it_is_removed(home: Home) -> None:
    broken = {"architecture": "shallow_net", "epochs": 1, "learning_rate": 10}
    home.write(edited(architectures={**ARCHITECTURES, "broken": broken}))
    assert "tiny/model/broken" in home.materialize()["failed"]
    assert "broken" not in whole(home, EXPERIMENT)


def test_a_report_is_held_back_while_a_gate_blocks_and_comes_when_it_holds_again(home: Home) -> None:
    home.write(edited(gates=[*GATES, "robust_accuracy >= 1 for weak"]))
    failed = home.materialize()["failed"]
    assert "tiny/evasion_gate/le_net/weak" in failed
    assert "is withheld" in failed["tiny/report"]
    whole(home, EXPERIMENT)
