"""Runs begin with their libraries imported: each is forked off a process that has imported TensorFlow and run nothing.

To import Dagster, MLflow and TensorFlow takes longer than most runs do. The daemon keeps one process that has imported
them, and nothing of this project: what a run does is read anew, so that an edit needs no restart.

Why: docs/decisions/0035-warm-runs.md
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any, Self

import psutil

from dioptra_assets.dagster_internals import (
    HIDDEN_TAG_PREFIX,
    RUN_PROCESS,
    CheckRunHealthResult,
    ConfigurableClass,
    ConfigurableClassData,
    ExecuteRunArgs,
    LaunchRunContext,
    RunLauncher,
    WorkerStatus,
)

# The process of a run: host, process id, and when it began, since ids are given again.
PROCESS_TAG = f"{HIDDEN_TAG_PREFIX}dioptra_process"
LIBRARIES = ["dagster", RUN_PROCESS, "keras", "mlflow.tracking", "pandas", "scipy.stats", "tensorflow", "zarr"]


class WarmRunLauncher(RunLauncher, ConfigurableClass):
    """Starts each run in a process of its own on this machine, within a second or two."""

    def __init__(self, inst_data: ConfigurableClassData | None = None):
        self._inst_data = inst_data
        self._watching: dict[str, threading.Thread] = {}
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Its entry in dagster.yaml."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """Nothing can be chosen."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """As Dagster makes it."""
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the process of a run."""
        run = context.dagster_run
        assert context.job_code_origin is not None
        arguments = ExecuteRunArgs(context.job_code_origin, run.run_id, self._instance.get_ref(), True)
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(LIBRARIES)
        words = ["dagster", *arguments.get_command_args()[-3:]]  # without the Python that runs them
        process = processes.Process(target=_execute, args=(words, dict(os.environ)))
        process.start()
        self._instance.add_run_tags(run.run_id, {PROCESS_TAG: _described(process.pid or 0)})
        watching = threading.Thread(target=self._watch, args=(run.run_id, process), daemon=True)
        self._watching[run.run_id] = watching
        watching.start()

    def _watch(self, run_id: str, process: Any) -> None:
        """Report a run as failed whose process ended without saying how the run did."""
        process.join()
        self._watching.pop(run_id, None)
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run and not run.is_finished:
            self._instance.report_run_failed(run, f"the process of the run ended with {process.exitcode}")

    def terminate(self, run_id: str) -> bool:
        """Ask a run to stop; whether there was a process to ask."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        process = _process_of(run.tags)
        if process is None:
            return False
        process.send_signal(signal.SIGINT)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """What was started by a daemon that is no more is looked after by the next."""
        return True

    def check_run_worker_health(self, run: Any) -> CheckRunHealthResult:
        """Whether the process of a run is alive; unless that runs elsewhere."""
        host = run.tags.get(PROCESS_TAG, "").partition(" ")[0]
        if host != socket.gethostname() or run.run_id in self._watching or _process_of(run.tags):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "the process of the run is no more")

    def join(self, timeout: int = 30) -> None:
        """Wait for the runs that were started here."""
        for watching in list(self._watching.values()):
            watching.join(timeout)


def _described(pid: int) -> str:
    try:
        return f"{socket.gethostname()} {pid} {psutil.Process(pid).create_time()}"
    except psutil.NoSuchProcess:  # it has ended already
        return f"{socket.gethostname()} {pid} 0"


def _process_of(tags: Mapping[str, str]) -> psutil.Process | None:
    """The process of a run on this machine, while it lives."""
    host, _, rest = tags.get(PROCESS_TAG, "").partition(" ")
    pid, _, created = rest.partition(" ")
    if host != socket.gethostname() or not pid.isdigit():
        return None
    try:
        process = psutil.Process(int(pid))
        alive = str(process.create_time()) == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if alive else None


def _execute(words: list[str], environment: Mapping[str, str]) -> None:
    """Be the command `dagster api execute_run ...`, with which the launchers of clusters start runs."""
    os.environ.clear()
    os.environ.update(environment)
    from dioptra_assets.robustness.model_files.trial import prepare_forking

    prepare_forking()
    sys.argv = words
    runpy.run_module("dagster", run_name="__main__", alter_sys=True)
