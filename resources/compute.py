"""The device a cell runs on."""

import functools
import os
import re
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from resources.executors.choice import engine, gpus_per_cell
from resources.executors.gpus import take_slot
from resources.imports import loading

# What TensorFlow writes at every start, whatever its log level: unimportant news and, on a machine without a GPU, that
# it found none. The device is recorded with each cell instead.
CHATTER = re.compile(
    r"I\d{4} |WARNING: All log messages before absl|E\d{4} .*failed call to cuInit|To enable the following instructions"
)


def device() -> str:
    """The device that this process computes cells on, without importing TensorFlow to find out."""
    return prepare_device() if "tensorflow" in sys.modules else "CPU"


def prepare_device() -> str:
    """Make TensorFlow share a GPU and compute deterministically, and say which device it uses.

    Called before a cell does any work with TensorFlow; every call but the first is free. Memory growth keeps one cell
    from taking a whole GPU. Where each step runs in a separate process, that process reserves one of several GPUs.

    Returns:
        `GPU NAME` or `CPU`.
    """
    if engine() == "multiprocess":
        take_slot(gpus_per_cell())
    return _prepared()


@functools.cache
def _prepared() -> str:
    with _without_chatter(), loading():
        tf: Any = import_module("tensorflow")  # it has no types
        gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            break  # the GPU is in use already: growth was set before that, or cannot be any more
    tf.config.experimental.enable_op_determinism()
    if not gpus:
        return "CPU"
    return f"GPU {tf.config.experimental.get_device_details(gpus[0]).get('device_name', '')}".strip()


@contextmanager
def _without_chatter() -> Generator[None]:
    """Pass on what native code writes to stderr in the body, without the chatter."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            lines = caught.read().decode(errors="replace").splitlines()
            for line in lines:
                if line and not CHATTER.match(line):
                    print(line, file=sys.stderr)
