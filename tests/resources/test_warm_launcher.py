"""Runs that are forked off a process with the libraries imported end, fail, stop and are killed like any other."""

import multiprocessing.forkserver
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import psutil
import pytest

from dioptra_assets.dagster_internals import ReconstructableRepository, WorkerStatus
from resources.warm_launcher import PROCESS_TAG, WarmRunLauncher
from tests.conftest import Lab

ASSETS = """
import sys
import time
from pathlib import Path

import dagster as dg

AT_START = "tensorflow" in sys.modules


@dg.asset
def quick():
    assert AT_START, "the libraries were there before the code"
    assert "WORD" == "right"


@dg.asset
def slow(context):
    Path(__file__).with_suffix(".begun").touch()
    time.sleep(300)
"""


@pytest.fixture(scope="module", autouse=True)
def own_server() -> Iterator[None]:
    """A process has one server that others are forked off; tests beside these have one with other modules."""
    server: Any = vars(multiprocessing.forkserver)["_forkserver"]
    server._stop()
    yield
    server._stop()


@pytest.fixture
def project(blank: Lab) -> Lab:
    """A lab with two assets of its own."""
    write(blank, "right")
    return blank


def write(lab: Lab, word: str) -> None:
    (lab.folder / lab.module / "defs" / "own.py").write_text(ASSETS.replace("WORD", word))


@pytest.fixture
def instance(project: Lab) -> Iterator[dg.DagsterInstance]:
    with project.instance() as instance:
        assert isinstance(instance.run_launcher, WarmRunLauncher)
        yield instance
        instance.run_launcher.join()


def launch(lab: Lab, instance: dg.DagsterInstance, asset: str) -> str:
    """Start a run of one asset as Dagster's daemon does; its id."""
    job = lab.defs().resolve_implicit_global_asset_job_def()
    code = ReconstructableRepository.for_module(f"{lab.module}.definitions", "defs", str(lab.folder))
    origin = code.get_reconstructable_job(job.name).get_python_origin()
    run = instance.create_run_for_job(job, asset_selection=frozenset([dg.AssetKey(asset)]), job_code_origin=origin)
    instance.launch_run(run.run_id, None)  # type: ignore[arg-type] - it needs no workspace
    return run.run_id


def run_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def wait(until: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_each_run_begins_with_its_libraries_and_with_the_code_as_it_is_now(
    project: Lab, instance: dg.DagsterInstance
) -> None:
    for word, status in (("right", "SUCCESS"), ("wrong", "FAILURE"), ("right", "SUCCESS")):
        write(project, word)
        run_id = launch(project, instance, "quick")
        wait(lambda run_id=run_id: run_of(instance, run_id).is_finished)
        assert run_of(instance, run_id).status.value == status


def begun(lab: Lab, instance: dg.DagsterInstance) -> tuple[str, psutil.Process]:
    """A run in the middle of its step, and its process."""
    run_id = launch(lab, instance, "slow")
    mark = lab.folder / lab.module / "defs" / "own.begun"
    wait(mark.exists)
    mark.unlink()
    launcher, run = instance.run_launcher, run_of(instance, run_id)
    assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    return run_id, psutil.Process(int(run.tags[PROCESS_TAG].split()[1]))


def test_a_run_that_is_stopped_is_cancelled_and_one_that_is_killed_has_failed(
    project: Lab, instance: dg.DagsterInstance
) -> None:
    stopped, process = begun(project, instance)
    assert instance.run_launcher.terminate(stopped)
    wait(lambda: not process.is_running())
    assert run_of(instance, stopped).status == dg.DagsterRunStatus.CANCELED
    assert not instance.run_launcher.terminate(stopped), "it has ended"

    killed, process = begun(project, instance)
    os.kill(process.pid, signal.SIGKILL)
    wait(lambda: run_of(instance, killed).is_finished, 10)
    assert run_of(instance, killed).status == dg.DagsterRunStatus.FAILURE


def test_a_daemon_that_comes_after_knows_which_runs_are_no_more(project: Lab, instance: dg.DagsterInstance) -> None:
    run_id, process = begun(project, instance)
    with project.instance() as later:
        run = run_of(later, run_id)
        assert later.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
        elsewhere = run.with_tags({**run.tags, PROCESS_TAG: "another-machine 1 1"})
        process.kill()
        wait(lambda: not process.is_running())
        assert later.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
        assert later.run_launcher.check_run_worker_health(elsewhere).status == WorkerStatus.RUNNING
