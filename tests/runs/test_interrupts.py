"""Ctrl-C and SIGTERM at any moment: one line, an exit code, nothing left behind, and the same command goes on."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from dioptra_assets.runs import interrupts
from dioptra_assets.runs.launch import Launched, materialize_experiment
from resources import settings
from resources.store import CellStore, Destination
from tests import made_up_cells as made_up
from tests.conftest import ROOT, SETTINGS, Lab

SECONDS = 5.0
LINE = re.compile(r"interrupted; (\d+) cells? kept; run the same command to continue")

# The command itself, on the experiment of a test. It is interrupted where the launch, or a cell, says that it has come
# so far: by itself, so that no test depends on how fast the machine is.
COMMAND = """
import os, signal, sys, threading, time
from pathlib import Path
from typing import Any
from dioptra_assets import __main__, definitions, progress

folder, moment, asset, begins = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "begins"

def interrupt(*numbers):
    moment.write_text(str(time.time()))
    for number in numbers:
        os.kill(os.getpid(), number)
    time.sleep(0.01)

def in_native_code():
    import numpy as np
    threading.Timer(0.2, interrupt, [signal.SIGINT]).start()
    np.linalg.eigvals(np.random.default_rng(0).random((4000, 4000)))  # one call, a minute

def twice():
    try:
        interrupt(signal.SIGINT)
    finally:
        threading.Timer(0.6, os.kill, [os.getpid(), signal.SIGINT]).start()
        time.sleep(60)

def listener(board, now_begins):
    if (board.asset.partition("/")[2], now_begins) == (asset, begins) and not moment.exists():
        WHAT

if folder:
    from tests.conftest import Lab
    definitions.defs, experiment = Lab(Path(folder)).defs, "tiny"
else:
    from tests import made_up_cells as made_up
    definitions.defs, experiment = made_up.defs, "made_up"
sys.argv = ["dioptra-assets", "materialize", experiment]
with progress.listening(listener):
    __main__.main()
"""


@dataclass(frozen=True)
class Ended:
    """How an interrupted command ended."""

    code: int
    err: list[str]
    seconds: float
    kept: int


def interrupted(what: str, asset: str, when: str = "within", folder: Path | None = None) -> Ended:
    """The command, interrupted when an asset `begins`, or when a cell says something from within."""
    moment = settings.home() / f"moment-{time.monotonic_ns()}"
    process = subprocess.run(
        [sys.executable, "-c", COMMAND.replace("WHAT", what), str(folder or ""), str(moment), asset, when],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert moment.exists(), process.stderr
    ended = time.time()
    err = [line for line in process.stderr.splitlines() if "mlflow.store.db" not in line]
    said = LINE.fullmatch(err[-1]) if err else None
    return Ended(process.returncode, err, ended - float(moment.read_text()), int(said[1]) if said else -1)


def assert_nothing_is_left() -> None:
    with dg.DagsterInstance.get() as instance:
        assert all(run.is_finished for run in instance.get_runs())
        storage = instance.event_log_storage
        for info in storage.get_concurrency_infos(sorted(storage.get_concurrency_keys())).values():
            assert not info.claimed_slots and not info.pending_steps
    for process in psutil.process_iter():
        try:
            assert str(settings.home()) not in " ".join(process.cmdline())
        except psutil.Error:
            continue


@pytest.fixture
def cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home for the experiment `made_up`."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    yield


def materialized() -> Launched:
    with dg.DagsterInstance.get() as instance:
        return materialize_experiment(
            made_up.defs(), "made_up", instance=instance, store=CellStore(settings.store_url())
        )


def slow(*moment: str) -> object:
    return pytest.param(*moment, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("what", "asset", "when"),
    [
        ("interrupt(signal.SIGINT)", "model", "within"),
        ("in_native_code()", "model", "within"),
        slow("interrupt(signal.SIGINT)", "training_set", "begins"),
        slow("interrupt(signal.SIGTERM)", "adversarial_set", "begins"),
        slow("interrupt(signal.SIGTERM)", "adversarial_set", "within"),
        slow("twice()", "model", "within"),
    ],
)
def test_an_interrupted_command_ends_at_once_and_the_same_command_goes_on(
    cheap: None, what: str, asset: str, when: str
) -> None:
    ended = interrupted(what, asset, when)
    assert ended.code == 128 + (signal.SIGTERM if "TERM" in what else signal.SIGINT)
    assert ended.seconds < SECONDS
    assert len(ended.err) == 1
    assert_nothing_is_left()
    again = materialized()
    assert not again.failed and not again.skipped
    assert (len(again.computed), again.fresh) == (made_up.CELLS - ended.kept, ended.kept)
    assert ended.kept < made_up.CELLS and (ended.kept > 0 or asset == "training_set")


@pytest.mark.slow
def test_a_launch_that_is_interrupted_at_every_stage_ends_green_in_the_end(blank: Lab) -> None:
    for what, asset, when in [
        ("interrupt(signal.SIGINT)", "model", "within"),
        ("in_native_code()", "model", "within"),
        ("interrupt(signal.SIGTERM)", "adversarial_set", "within"),
        ("interrupt(signal.SIGINT)", "clean_predictions", "begins"),
        ("interrupt(signal.SIGINT)", "report", "begins"),
    ]:
        ended = interrupted(what, asset, when, blank.folder)
        assert ended.code == 128 + (signal.SIGTERM if "TERM" in what else signal.SIGINT), (what, asset, ended.err)
        assert ended.seconds < SECONDS, (what, asset)
        assert len(ended.err) == 1 and ended.kept >= 0, ended.err
        assert_nothing_is_left()
    launched = blank.materialize()
    assert not launched.failed and not launched.skipped
    assert set(blank.statuses().values()) == {"FRESH"}


@pytest.mark.parametrize("after", [0.2, pytest.param(0.6, marks=pytest.mark.slow)])
def test_an_interruption_while_the_command_starts_is_one_line(cheap: None, after: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); from dioptra_assets import __main__; __main__.main()", "list"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (130, b"interrupted\n")


def test_in_a_notebook_it_is_a_keyboard_interrupt_after_which_nothing_begins(
    cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = made_up.write_config

    def interrupt(destination: Destination, *args: Any, **kwargs: Any) -> object:
        if destination.cell.path.startswith("made_up/model"):
            signal.raise_signal(signal.SIGINT)
        return write(destination, *args, **kwargs)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(made_up, "write_config", interrupt)
    with pytest.raises(KeyboardInterrupt):
        materialized()
    assert signal.getsignal(signal.SIGINT) is before
    assert_nothing_is_left()
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs(limit=1)[0].asset_selection == {dg.AssetKey(["made_up", "model"])}
    monkeypatch.setattr(made_up, "write_config", write)
    assert len(materialized().computed) == made_up.CELLS - 2


def test_an_event_loop_that_waits_for_signals_hears_of_those_that_a_launch_has_heard() -> None:
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno())
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.noticed():
            signal.raise_signal(signal.SIGINT)
        assert heard.recv(10) == bytes([signal.SIGINT])
    finally:
        signal.set_wakeup_fd(before)
        heard.close()
        told.close()
