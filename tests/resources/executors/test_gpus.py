"""One process a GPU: made-up devices, real processes."""

import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources import compute
from resources.executors import backfills, gpus, workers

HOLD = """
import sys, time
from pathlib import Path
from resources.executors.gpus import take_slot, visible_gpus
print(take_slot(float(sys.argv[2]), Path(sys.argv[1])), ",".join(visible_gpus()), flush=True)
time.sleep(600)
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def hold(folder: Path, share: float = 1) -> subprocess.Popen[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "made-up-0,made-up-1"}
    words = [sys.executable, "-c", HOLD, str(folder), str(share)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_each_process_sees_a_gpu_of_its_own_and_a_killed_one_gives_it_back(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    processes += [hold(tmp_path), hold(tmp_path)]
    taken = [said(process) for process in processes]
    assert sorted(taken) == [["made-up-0", "made-up-0"], ["made-up-1", "made-up-1"]]
    processes.append(hold(tmp_path))  # waits
    os.kill(processes[0].pid, signal.SIGKILL)
    assert said(processes[2]) == taken[0]


def test_two_processes_share_a_gpu_only_when_no_other_is_empty(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    taken = []
    for _ in range(4):
        processes.append(hold(tmp_path, share=0.5))
        taken.append(said(processes[-1])[0])
    assert taken == ["made-up-0", "made-up-1", "made-up-0", "made-up-1"]


@pytest.mark.parametrize(("named", "there"), [("", []), ("-1", []), ("0, 2", ["0", "2"]), ("GPU-a", ["GPU-a"])])
def test_what_is_visible_is_what_cuda_was_told(named: str, there: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus.visible_gpus() == there


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    gpus._gpus_of_the_machine.cache_clear()
    assert gpus.visible_gpus() == []
    gpus._gpus_of_the_machine.cache_clear()


def test_a_step_with_a_process_of_its_own_takes_a_slot_before_tensorflow_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def look(kind: str) -> list[str]:
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return []

    config = types.SimpleNamespace(
        list_physical_devices=look, experimental=types.SimpleNamespace(enable_op_determinism=lambda: None)
    )
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=config))
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "_held", [])
    monkeypatch.setattr(compute, "_prepared", compute._prepared.__wrapped__)
    for engine, sees in (("in_process", "made-up-0,made-up-1"), ("multiprocess", "made-up-0")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "made-up-0,made-up-1")
        monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", engine)
        compute.prepare_device()
        assert seen[-1] == sees


def test_a_backfill_spreads_over_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "multiprocess")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert backfills.cells_per_run() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert backfills.cells_per_run() == 10


def test_one_worker_a_gpu_with_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    commands = workers.worker_commands(workers.chosen_gpus("all"))
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in commands] == ["3", "5"]
    assert len({command[command.index("-n") + 1] for command, _ in commands}) == 2
    ((_, environment),) = workers.worker_commands(workers.chosen_gpus("none"))
    assert environment["CUDA_VISIBLE_DEVICES"] == "-1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ((command, _),) = workers.worker_commands(workers.chosen_gpus("all"))
    assert "-n" not in command


def test_when_one_worker_ends_the_others_are_ended_too(tmp_path: Path) -> None:
    lasting = [sys.executable, "-c", "import time; time.sleep(600)"]
    ending = [sys.executable, "-c", "import sys; sys.exit(3)"]
    before = signal.getsignal(signal.SIGTERM)
    try:
        status = workers.serve([(lasting, dict(os.environ)), (ending, dict(os.environ))])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status in (3, -signal.SIGTERM)
