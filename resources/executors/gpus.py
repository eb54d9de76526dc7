"""Which GPUs are visible, and which of them a process uses.

A process that sees several takes one slot and sees that GPU alone from then on; the slot is a lock on a file, which the
system gives back when the process ends, however it ends.
"""

import os
import subprocess
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
PAUSE_SECONDS = 0.5
_held: list[FileLock] = []


def visible_gpus() -> list[str]:
    """What CUDA calls the GPUs that this process may use; none on a machine without."""
    named = os.environ.get(VISIBLE_VARIABLE)
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() and gpu.strip() != "-1"]
    return list(_gpus_of_the_machine())


@lru_cache(maxsize=1)
def _gpus_of_the_machine() -> tuple[str, ...]:
    """Asked of the driver: asking TensorFlow would import it, and take memory on each GPU."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in listed.splitlines() if line.strip())


def take_slot(gpus_per_process: float, folder: Path | None = None) -> str:
    """Keep one GPU of several for this process until it ends, and hide the others from it.

    Called before TensorFlow is imported. Waits while every slot is taken.

    Args:
        gpus_per_process: 1 for a GPU alone; 0.5 where two processes share one.
        folder: where the locks are; the same for all processes of a machine.

    Returns:
        The GPU, or empty if the machine has none to choose from.
    """
    gpus = visible_gpus()
    if _held or len(gpus) < 2 or gpus_per_process <= 0:
        return gpus[0] if len(gpus) == 1 else ""
    folder = folder or Path(tempfile.gettempdir()) / f"dioptra_assets_gpus_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    share = max(1, int(1 / gpus_per_process))
    while True:
        for turn in range(share):  # an empty GPU before a second process on a busy one
            for gpu in gpus:
                lock = FileLock(folder / f"{gpu.replace('/', '_')}.{turn}", blocking=False)
                try:
                    lock.acquire()
                except Timeout:
                    continue
                _held.append(lock)
                os.environ[VISIBLE_VARIABLE] = gpu
                return gpu
        time.sleep(PAUSE_SECONDS)
