"""A file of a model from outside is tried by a process that may end, and whatever ends it is said in a sentence."""

import sys
import time
from pathlib import Path

import keras
import psutil
import pytest

from dioptra_assets.robustness import model_trial
from dioptra_assets.robustness.model_file_config import UnsafeModelError
from dioptra_assets.robustness.training import TrainingRecipe, initial_model
from resources.mlflow_client import file_sha256

SHAPE = (8, 8, 1)
ENDING = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(10)]).save(path)
    return path


def doing(monkeypatch: pytest.MonkeyPatch, code: str) -> list[list[str]]:
    """Have a trial run some code in the place of loading; gives what each was asked to try."""
    asked: list[list[str]] = []

    def command(arguments: list[str]) -> list[str]:
        asked.append(arguments)
        return [sys.executable, "-c", code]

    monkeypatch.setattr(model_trial, "command", command)
    return asked


def test_a_model_is_loaded_and_called_by_another_process_once_for_its_content(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    command = model_trial.command
    monkeypatch.setattr(model_trial, "command", lambda given: (started.append(given), command(given))[1])
    for _ in range(2):
        model_trial.try_model(model, file_sha256(model), SHAPE)
    assert started == [[str(model), "[8, 8, 1]"]]


def test_it_is_called_there_and_what_is_only_refused_is_left_to_whoever_loads_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[int, ...]] = []
    monkeypatch.setattr(keras.Sequential, "__call__", lambda _, x, **__: called.append(x.shape))
    model_trial.main(str(model), "[8, 8, 1]")
    assert called == [(2, 8, 8, 1)]
    other = tmp_path / "other.keras"
    other.write_bytes(b"no archive")
    model_trial.main(str(other), "[8, 8, 1]")
    model_trial.main(str(other))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (ENDING, r"model\.keras: to load it and call it once ends the process \(SIGSEGV\)\. It was tried in a process"),
        ("import os; os._exit(134)", r"ends the process \(exit code 134\)"),
        ("import time; time.sleep(60)", r"takes more than 1 s\. It was tried"),
        ("import time; held = bytearray(10**9); time.sleep(60)", r"takes more than 0\.2 GB"),
    ],
    ids=["fault", "exit", "time", "memory"],
)
def test_what_ends_the_process_is_a_refusal_and_nothing_is_left_of_it(
    code: str, said: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doing(monkeypatch, code)
    monkeypatch.setenv("DIOPTRA_ASSETS_MEMORY", "0.2 GB")
    monkeypatch.setattr(model_trial, "SECONDS", 1.0 if "1 s" in said else 60.0)
    children, begun = set(psutil.Process().children()), time.monotonic()
    with pytest.raises(UnsafeModelError, match=said):
        model_trial.try_model(model, "a digest", SHAPE)
    assert time.monotonic() - begun < 30 and set(psutil.Process().children()) <= children
    assert "a digest" not in model_trial.known, "it is tried again"


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
