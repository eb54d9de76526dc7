"""The life of an experiment: edited, interrupted, killed, robbed of MLflow or its store, and run in any order.

After a quiet `materialize` everything is fresh, and every stored value is that of a new home with the same file. Rules
such as `no worse than last` are left out: a new home has no last. For an hour of it:

    LIFE_SECONDS=3600 pytest -m slow tests/test_experiment_life.py
"""

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.made_up import POINTS, EndedError, Home, Kill, digest

SECONDS = float(os.environ.get("LIFE_SECONDS", "60"))
RECIPES = {
    "le_net": {"epochs": 1},
    "shallow_net": {"epochs": 1},
    "third": {"architecture": "le_net", "epochs": 2},
    "broken": {"architecture": "le_net", "epochs": 1, "learning_rate": 10},
}
ATTACKS = {"fgm": {"eps": 0.3}, "weak": {"method": "fgm", "eps": 0.05}, "strong": {"method": "fgm", "eps": 0.5}}
DEFENCES = {"smoothing": {"method": "spatial_smoothing", "window_size": 3}}
GATES = [
    {"rule": "robust_accuracy >= 1 for *", "severity": "warn"},
    "clean_accuracy >= 0 for *",
    {"rule": "asr <= 0.5 for *", "severity": "warn"},
]
kills = st.builds(
    Kill, st.sampled_from(POINTS), st.integers(0, 40), st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])
)
counted = {"lives": 0, "looks": 0}
known: dict[str, dict[str, Any]] = {}  # file -> what a new home with it holds


def held(seen: dict[str, Any]) -> dict[str, Any]:
    """What is compared: every stored byte and fact of every cell that the file declares.

    Not the last verdict that a gate was held against, which is history.
    """
    return {
        path: one | {"attributes": {name: fact for name, fact in one["attributes"].items() if name != "last"}}
        for path, one in seen["served"].items()
    }


class ExperimentLife(RuleBasedStateMachine):
    """One home and its file. Rules of registered versions go here, beside those of attacks."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.home = Home.new(self.folder / "home")
        self.file: dict[str, Any] = {
            "seed": 7,
            "data": {"source": "digits", "image_size": [8, 8], "test_fraction": 0.1},
            "architectures": {"le_net": RECIPES["le_net"]},
            "attacks": {"fgm": ATTACKS["fgm"]},
        }
        self.home.write(self.file)

    def teardown(self) -> None:
        counted["lives"] += 1
        print(f"{counted['lives']} lives, looked at {counted['looks']} times", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def edit(self, section: str, value: Any) -> None:
        self.file = {**self.file, section: value}
        self.home.write(self.file)

    # ---- edits

    @rule(
        keys=st.lists(st.sampled_from(sorted(RECIPES)), min_size=1, max_size=3, unique=True), epochs=st.integers(1, 2)
    )
    def other_architectures(self, keys: list[str], epochs: int) -> None:
        chosen = {key: RECIPES[key] for key in keys}
        self.edit("architectures", chosen | {keys[0]: chosen[keys[0]] | {"epochs": epochs}})

    @rule(keys=st.lists(st.sampled_from(sorted(ATTACKS)), min_size=1, max_size=2, unique=True), seed=st.integers(0, 1))
    def other_attacks(self, keys: list[str], seed: int) -> None:
        self.edit("attacks", {key: ATTACKS[key] | ({"seed": seed} if seed else {}) for key in keys})

    @rule(gates=st.lists(st.sampled_from(GATES), max_size=2, unique_by=str))
    def other_gates(self, gates: list[Any]) -> None:
        self.edit("gates", gates)

    @rule(defended=st.booleans())
    def other_defences(self, defended: bool) -> None:
        self.edit("defences", DEFENCES if defended else {})

    @rule(description=st.sampled_from(["", "Another."]), seed=st.sampled_from([7, 8]))
    def another_description_and_seed(self, description: str, seed: int) -> None:
        self.edit("description", description)
        self.edit("seed", seed)

    # ---- faults

    @rule(there=st.booleans())
    def mlflow_comes_and_goes(self, there: bool) -> None:
        self.home.mlflow(there=there)

    @rule(kill=kills)
    def materialize_and_be_ended(self, kill: Kill) -> None:
        with contextlib.suppress(EndedError):  # it may end before it comes to that point
            self.home.materialize(kill)

    @rule()
    def materialize_without_a_store(self) -> None:
        with self.home.without_store():
            try:
                assert self.home.materialize()["failed"]
            except RuntimeError as error:
                assert "cannot open" in str(error), error

    # ---- runs in any order

    @rule(asset=st.sampled_from(["architecture_config", "attack_config", "model", "clean_predictions"]))
    def run_one_cell(self, asset: str) -> None:
        keys = self.file["attacks" if asset == "attack_config" else "architectures"]
        self.home.run(asset, (next(iter(keys)),))

    @rule(asset=st.sampled_from(["adversarial_set", "evasion_examples", "evasion_metrics"]))
    def backfill(self, asset: str) -> None:
        cells = [f"{a}|{k}" for a in self.file["architectures"] for k in self.file["attacks"]]
        self.home.run(asset, (cells[0], cells[-1]))

    @rule(asset=st.sampled_from(["transfer_matrix", "report", "testing_set"]))
    def run_what_goes_over_all(self, asset: str) -> None:
        self.home.run(asset)

    # ---- what must hold

    @precondition(lambda self: "broken" not in self.file["architectures"])
    @rule()
    def a_quiet_materialize_is_as_good_as_a_new_home(self) -> None:
        launched = self.home.materialize()
        assert (launched["failed"], launched["skipped"]) == ({}, [])
        seen = self.home.look()
        counted["looks"] += 1
        assert (seen["stale"], seen["unfinished"]) == ([], {})
        asked = digest(json.dumps(self.file))  # in its order
        if asked not in known:
            new = Home.new(self.folder / f"new_{asked[:8]}")
            new.write(self.file)
            assert not new.materialize()["failed"]
            known[asked] = new.look()
            shutil.rmtree(new.folder)
        assert held(seen) == held(known[asked])
        assert seen["report"] == known[asked]["report"]


def live(examples: int, steps: int) -> None:
    checks: Any = list(HealthCheck)
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, database=None
    )
    run_state_machine_as_test(ExperimentLife, settings=chosen)


def test_a_short_life() -> None:
    life = ExperimentLife()
    life.begin()
    life.mlflow_comes_and_goes(there=False)
    life.materialize_and_be_ended(Kill("current", 7))
    life.other_gates(GATES[:2])
    life.other_attacks(["weak"], seed=1)
    life.mlflow_comes_and_goes(there=True)
    life.a_quiet_materialize_is_as_good_as_a_new_home()
    life.teardown()


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_long_lives() -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        live(examples=5, steps=12)
