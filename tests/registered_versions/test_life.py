"""The life of registered versions: registered, deleted, registered anew with other bytes, edited, cut off, killed.

Whatever happened, each version that the registry holds ends in the verdict that its bytes earn, and waits with a time
for its next try until then. For an hour of it:

    LIFE_SECONDS=3600 pytest -m slow tests/registered_versions/test_life.py
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from dioptra_assets.robustness.data.digits import DigitsSource
from resources.tables import read_table
from resources.tracking.resource import Tracking, TrackingUnavailable
from tests.conftest import enter, skeleton
from tests.registry import ONE_ATTACK, Follower, at_once, client, failing, model_file, register

SECONDS = float(os.environ.get("LIFE_SECONDS", "60"))
NAME = "team_le_net"
TILTS = {"passed": 0.0, "failed": 0.5}  # verdict -> how far the weights of a model that earns it are tilted
AWAY = TrackingUnavailable("MLflow did not answer")
FAULTS = {
    "the registry is away": (Tracking, "registered_versions", AWAY),
    "the file cannot be fetched": (Tracking, "fetch_any_model", AWAY),
    "the data are not there": (DigitsSource, "load", FileNotFoundError("there is no file digits.csv yet")),
}


class VersionLife(RuleBasedStateMachine):
    """One home, its registry, and what each version in it has to come to."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.patches = pytest.MonkeyPatch()
        self.lab = skeleton(self.folder / "project")
        enter(self.patches, self.lab)
        self.lab.write(ONE_ATTACK)
        self.files = {}
        for verdict, tilt in TILTS.items():
            (self.folder / verdict).mkdir()
            self.files[verdict] = model_file(self.folder / verdict, tilt=tilt)
        self.follower = Follower(self.lab)
        self.earned: dict[str, str] = {}  # NAME@VERSION -> its verdict

    def teardown(self) -> None:
        self.patches.undo()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the registry

    @rule(verdict=st.sampled_from(sorted(TILTS)))
    def register(self, verdict: str) -> None:
        self.earned[register(self.lab, self.files[verdict], NAME)] = verdict

    @precondition(lambda self: self.earned)
    @rule(data=st.data())
    def delete_one(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.earned)))
        client(self.lab).delete_model_version(NAME, key.rpartition("@")[2])
        del self.earned[key]

    @precondition(lambda self: self.earned)
    @rule(verdict=st.sampled_from(sorted(TILTS)))
    def register_the_first_anew(self, verdict: str) -> None:
        client(self.lab).delete_registered_model(NAME)
        self.earned = {}
        self.register(verdict)

    # ---- the file

    @rule(eps=st.sampled_from([0.01, 0.011]))
    def edit_the_attack(self, eps: float) -> None:
        self.lab.write({**ONE_ATTACK, "attacks": {"weak": {"method": "fgm", "eps": eps}}})

    # ---- looks

    @rule(fault=st.sampled_from([*sorted(FAULTS), ""]))
    def look(self, fault: str) -> None:
        with self.in_the_way(fault):
            self.follower.tick()
        self.each_has_a_verdict_or_a_time()

    @rule()
    def look_and_have_the_runs_killed(self) -> None:
        for request in self.follower.tick(start=False):
            self.follower.kill(self.follower.begin(request))

    @rule()
    def lose_the_cursor(self) -> None:
        self.follower = Follower(self.lab)

    @contextlib.contextmanager
    def in_the_way(self, fault: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patches:
            if fault:
                failing(patches, *FAULTS[fault])
            yield

    # ---- what must hold

    def each_has_a_verdict_or_a_time(self) -> None:
        for key, one in self.follower.verdicts.items():
            assert one.status != "waiting" or not one.tries or one.next_try > time.time() - 60, (key, one)

    @rule()
    def in_the_end_each_has_what_its_bytes_earn(self) -> None:
        for _ in range(8):
            self.follower.follow()
            waiting = [key for key in self.earned if self.follower.verdicts[key].status == "waiting"]
            if not waiting:
                break
            for key in waiting:
                at_once(self.lab, self.follower, key)
        verdicts = self.follower.verdicts
        assert {key: verdicts[key].status for key in self.earned} == self.earned
        assert set(self.follower.partitions) == set(self.earned)
        rows: dict[str, Any] = {}
        for key, verdict in self.earned.items():
            assert verdicts[key].digest == hashlib.sha256(self.files[verdict].read_bytes()).hexdigest()
            table = read_table(self.lab.find("registered_model/evasion_metrics", architecture=key, attack="weak"))
            numbers = table.drop(columns=["source", "target"])
            assert rows.setdefault(verdict, numbers).equals(numbers), "equal bytes have equal numbers"
        with self.lab.instance() as instance:
            assert all(run.is_finished for run in instance.get_runs())


def live(examples: int, steps: int) -> None:
    checks: Any = list(HealthCheck)
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, database=None
    )
    run_state_machine_as_test(VersionLife, settings=chosen)


def test_a_short_life_of_versions() -> None:
    life = VersionLife()
    life.begin()
    try:
        life.register("passed")
        life.look("the file cannot be fetched")
        life.register("failed")
        life.look_and_have_the_runs_killed()
        life.register_the_first_anew("failed")
        life.register("passed")
        life.look("the registry is away")
        life.in_the_end_each_has_what_its_bytes_earn()
    finally:
        life.teardown()


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_long_lives_of_versions() -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        live(examples=3, steps=10)
