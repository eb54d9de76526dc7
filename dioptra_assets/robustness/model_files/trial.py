"""Files of models from outside are tried in a process of their own first.

What a file asks for is bounded before it is loaded (`checks.py`, `tensors.py`), but libraries of native code
read it, and a fault in one of them ends the process at once, with everything else that the process does. So a file that
nobody here has loaded before is loaded, and called once, by a process that may end: it costs the start of TensorFlow,
some seconds, once for each content, or nearly nothing where that process can be forked off one that has imported it
(`forked_trials`). Whether the model is any good is not asked here; whoever loads it next says so.

Why: docs/decisions/0009-models-are-files.md
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from dioptra_assets.robustness import forked_trials, memory
from dioptra_assets.robustness.model_files.config import UnsafeModelError

MODULE = "dioptra_assets.robustness.model_files.trial"
SECONDS = 300.0  # of one trial, the start of TensorFlow included; most take a few
CPU_SECONDS = 600  # of all its threads: it ends by itself, should nobody be there to end it
# Without a declared limit a trial gets so much, or half of what is free where that is less.
MOST_BYTES = 8_000_000_000
SHARE_OF_FREE = 0.5
LOOK_SECONDS = 0.05
BACKEND = "tensorflow"  # of Keras, in every trial

Trial = subprocess.Popen[bytes] | forked_trials.ForkedTrial

# Digests of files that were tried by this process, or need not be.
known: set[str] = set()


def try_model(path: Path, digest: str, image_shape: Sequence[int]) -> None:
    """Have another process load a model and call it once, unless its content is known.

    Args:
        path: a `.keras` archive or an HDF5 file.
        digest: its SHA-256.
        image_shape: (height, width, channels) of the images it is called with, where it takes such.

    Raises:
        UnsafeModelError: when that ended the process, or took too long or too much memory.
    """
    if digest not in known:
        _tried(path, [str(path), json.dumps(list(image_shape))])
        known.add(digest)


def try_to_read(path: Path) -> None:
    """Have another process read a file of weights, whose values nothing runs: that takes no TensorFlow.

    Raises:
        UnsafeModelError: when that ended the process, or took too long or too much memory.
    """
    _tried(path, [str(path)])


def prepare_forking() -> None:
    """Have trials forked off this process, which has imported TensorFlow, has run nothing in it, and has one thread."""
    if os.environ.get("KERAS_BACKEND", BACKEND) == BACKEND:
        forked_trials.begin(limited)


def command(arguments: Sequence[str]) -> list[str]:
    """What is run for a trial."""
    return [sys.executable, "-P", "-m", MODULE, *arguments]


def _tried(path: Path, arguments: Sequence[str]) -> None:
    limit = memory.declared_limit() or min(MOST_BYTES, int(SHARE_OF_FREE * psutil.virtual_memory().available))
    # Without a GPU: this process may hold all of its memory.
    child = _begun(arguments, {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": BACKEND})
    try:
        said = _ended(child, limit)
    finally:
        child.kill()
        child.wait()
    if said:
        raise UnsafeModelError(
            f"{path}: {said}. It was tried in a process of its own, and is not loaded here; save it anew with a Keras"
            " that you trust, or make it smaller"
        )


def _begun(arguments: Sequence[str], settings: Mapping[str, str]) -> Trial:
    if forked_trials.there_is_one():
        with contextlib.suppress(OSError):
            return forked_trials.ForkedTrial(arguments, settings)
    silent = subprocess.DEVNULL
    environment = os.environ | settings
    return subprocess.Popen(command(arguments), stdin=silent, stdout=silent, stderr=silent, env=environment)


def _ended(child: Trial, limit: int) -> str:
    """Why the process did not end well, empty where it did."""
    until = time.monotonic() + SECONDS
    try:
        process = psutil.Process(child.pid)
    except psutil.NoSuchProcess:  # forked, and ended already
        process = None
    while (status := child.poll()) is None:
        if time.monotonic() > until:
            return f"to load it and call it once takes more than {SECONDS:.0f} s"
        try:
            taken = process.memory_info().rss if process else 0
        except psutil.Error:  # it has just ended
            taken = 0
        if taken > limit:
            return f"to load it and call it once takes more than {limit / 1e9:.1f} GB"
        time.sleep(LOOK_SECONDS)
    if status < 0:
        return f"to load it and call it once ends the process ({signal.Signals(-status).name})"
    return f"to load it and call it once ends the process (exit code {status})" if status else ""


def main(path: str, image_shape: str = "") -> None:
    """In the process of its own: whatever is no end of it is said by whoever does the same next."""
    try:
        if not image_shape:
            from dioptra_assets.robustness.model_files.checks import check_model_file

            check_model_file(path)
            return
        import numpy as np

        from dioptra_assets.robustness.model_files.files import load_model

        model = load_model(path)
        model(np.zeros((2, *json.loads(image_shape)), np.float32), training=False)
    except Exception:  # noqa: BLE001 - see above
        return


def limited(*arguments: str) -> None:
    """The same, in a process of its own, which leaves no core and ends by itself in the end."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    main(*arguments)


if __name__ == "__main__":
    limited(*sys.argv[1:])
