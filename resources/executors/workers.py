"""Celery workers of this machine, one per GPU, which sees that GPU alone: `python -m resources.executors.workers`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from resources.executors.gpus import VISIBLE_VARIABLE, visible_gpus

PAUSE_SECONDS = 0.5
# One task at a time, from both queues.
WORKER = [
    str(Path(sys.executable).with_name("celery")),
    *["-A", "resources.executors.celery_app", "worker", "-Q", "gpu,dagster", "-c", "1", "-l", "INFO"],
]


def chosen_gpus(gpus: str) -> list[str]:
    """`all` that are visible, `none`, or names with commas; one empty name stands for a worker without."""
    if gpus == "none":
        return ["-1"]
    named = visible_gpus() if gpus == "all" else [name.strip() for name in gpus.split(",") if name.strip()]
    return named or [""]


def worker_commands(gpus: Sequence[str], further: Sequence[str] = ()) -> list[tuple[list[str], dict[str, str]]]:
    """For each worker its command, and its environment."""
    commands: list[tuple[list[str], dict[str, str]]] = []
    for number, gpu in enumerate(gpus):
        name = ["-n", f"gpu{number}-{os.getpid()}@%h"] if len(gpus) > 1 else []
        environment = dict(os.environ) | ({VISIBLE_VARIABLE: gpu} if gpu else {})
        commands.append(([*WORKER, *name, *further], environment))
    return commands


def serve(commands: Sequence[tuple[list[str], dict[str, str]]]) -> int:
    """Run workers until one of them ends, or this process is told to; gives the status of the first that ended."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    workers = [subprocess.Popen(command, env=environment) for command, environment in commands]
    try:
        while all(worker.poll() is None for worker in workers):
            time.sleep(PAUSE_SECONDS)
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.terminate()
        for worker in workers:
            worker.wait()  # it finishes the step it has begun
    return next((worker.returncode for worker in workers if worker.returncode), 0)


if __name__ == "__main__":
    sys.exit(serve(worker_commands(chosen_gpus("all"))))
