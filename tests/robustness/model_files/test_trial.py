"""A file of a model from outside is tried by a process that may end, and whatever ends it is said in a sentence."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import psutil
import pytest

from dioptra_assets.robustness import forked_trials
from dioptra_assets.robustness.model_files import trial
from dioptra_assets.robustness.model_files.config import UnsafeModelError
from dioptra_assets.robustness.training.loop import TrainingRecipe, initial_model
from resources.tracking.client import file_sha256

SHAPE = (8, 8, 1)
ENDING = "import faulthandler, os, signal; faulthandler.disable(); os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(10)]).save(path)
    return path


@pytest.fixture(params=["started", "forked"])
def forked(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether trials are forked off a process that was made ready, or each is started from nothing."""
    yield request.param == "forked"
    forked_trials.end()


def doing(monkeypatch: pytest.MonkeyPatch, code: str) -> list[list[str]]:
    """Have a trial run some code in the place of loading; gives what each was asked to try."""
    asked: list[list[str]] = []

    def command(arguments: list[str]) -> list[str]:
        asked.append(arguments)
        return [sys.executable, "-c", code]

    monkeypatch.setattr(trial, "command", command)
    return asked


def test_a_model_is_loaded_and_called_by_another_process_once_for_its_content(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = doing(monkeypatch, "pass")
    for _ in range(2):
        trial.try_model(model, file_sha256(model), SHAPE)
    assert started == [[str(model), "[8, 8, 1]"]]


def test_it_is_called_there_and_what_is_only_refused_is_left_to_whoever_loads_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[int, ...]] = []
    monkeypatch.setattr(keras.Sequential, "__call__", lambda _, x, **__: called.append(x.shape))
    trial.main(str(model), "[8, 8, 1]")
    assert called == [(2, 8, 8, 1)]
    other = tmp_path / "other.keras"
    other.write_bytes(b"no archive")
    trial.main(str(other), "[8, 8, 1]")
    trial.main(str(other))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (ENDING, r"model\.keras: to load it and call it once ends the process \(SIGSEGV\)\. It was tried in a process"),
        ("import os; os._exit(134)", r"ends the process \(exit code 134\)"),
        ("import time; time.sleep(60)", r"takes more than 1 s\. It was tried"),
        ("import time; held = bytearray(3 * 10**9); time.sleep(60)", r"takes more than [\d.]+ GB"),
    ],
    ids=["fault", "exit", "time", "memory"],
)
def test_what_ends_the_process_is_a_refusal_and_nothing_is_left_of_it(
    code: str, said: str, forked: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forked:
        forked_trials.begin(lambda *_: exec(code))
    else:
        doing(monkeypatch, code)
    # A fork begins with what this process holds, whatever its tests before this one left.
    held = psutil.Process().memory_info().rss if forked else 0
    monkeypatch.setenv("DIOPTRA_ASSETS_MEMORY", f"{held / 1e9 + 1.5:.2f} GB")
    monkeypatch.setattr(trial, "SECONDS", 1.0 if "1 s" in said else 60.0)
    children, begun = set(psutil.Process().children(recursive=True)), time.monotonic()
    with pytest.raises(UnsafeModelError, match=said):
        trial.try_model(model, "a digest", SHAPE)
    assert time.monotonic() - begun < 30 and nothing_but(children)
    assert "a digest" not in trial.known, "it is tried again"


def nothing_but(children: set[psutil.Process], seconds: float = 5) -> bool:
    """Whether this process has no other children, what has ended left out."""
    until = time.monotonic() + seconds
    while left := [
        one for one in set(psutil.Process().children(recursive=True)) - children if one.status() != psutil.STATUS_ZOMBIE
    ]:
        if time.monotonic() > until:
            raise AssertionError(left)
        time.sleep(0.1)
    return True


FORKED = """
import os, sys, time
import keras
from dioptra_assets.robustness import forked_trials
from dioptra_assets.robustness.model_files import trial
from resources.tracking.client import file_sha256

trial.prepare_forking()
path, begun = sys.argv[1], os.times()
assert forked_trials.there_is_one()
for digest in ("one", "two"):
    trial.try_model(path, digest, (8, 8, 1))
    keras.saving.load_model(path)  # what is run here hangs no later trial
ended = os.times()
print(ended.children_user - begun.children_user)
"""


def test_trials_are_forked_off_a_process_that_has_run_nothing_and_start_no_python(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(model)], check=True, capture_output=True, text=True, timeout=120
    )
    assert float(done.stdout) == 0, "nothing was started"


def test_what_a_trial_holds_no_longer_than_it_has_to_ends_with_whoever_asked(tmp_path: Path) -> None:
    parent = os.fork()
    if parent == 0:
        forked_trials.begin(lambda *_: time.sleep(1))
        forked_trials.ForkedTrial([], {})
        (tmp_path / "children").write_text(" ".join(str(one.pid) for one in psutil.Process().children(recursive=True)))
        os._exit(0)
    os.waitpid(parent, 0)
    pids = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    until = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert len(pids) == 2


def test_a_trial_is_started_from_nothing_where_none_can_be_forked_any_more(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked_trials.begin(lambda *_: None)
    (server,) = [one for one in psutil.Process().children() if one.name() == psutil.Process().name()][-1:]
    server.kill()
    server.wait()
    asked = doing(monkeypatch, "pass")
    trial.try_model(model, "another digest", SHAPE)
    assert asked == [[str(model), "[8, 8, 1]"]] and not forked_trials.there_is_one()


def test_a_file_of_weights_is_read_by_another_process_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "own.weights.h5"
    recipe = TrainingRecipe(architecture="shallow_net", weights=str(weights))
    first = initial_model(recipe.model_copy(update={"weights": None}), SHAPE, 10)
    first.save_weights(weights)
    read = initial_model(recipe, SHAPE, 10)
    assert all((a == b).all() for a, b in zip(first.get_weights(), read.get_weights(), strict=True))
    asked = doing(monkeypatch, ENDING)
    with pytest.raises(UnsafeModelError, match=r"own\.weights\.h5: .* ends the process \(SIGSEGV\)"):
        initial_model(recipe, SHAPE, 10)
    assert asked == [[str(weights)]]
