"""Output of steps that run in this process goes to the log of their run, which the UI shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dioptra_assets.dagster_internals import ensure_file, local_compute_log_manager, redirect_to_file

_manager: Any = local_compute_log_manager


@contextmanager
def to_the_log_alone() -> Iterator[None]:
    """Send the stdout and stderr of steps to the log of their run only, not to the terminal.

    The terminal shows the progress of the launch. Dagster would mirror the streams through two processes per step. Each
    costs a Python start and answers Ctrl-C with its own traceback.
    """
    mirror = _manager.mirror_stream_to_file
    _manager.mirror_stream_to_file = _to_file
    try:
        yield
    finally:
        _manager.mirror_stream_to_file = mirror


@contextmanager
def _to_file(stream: object, path: str) -> Iterator[None]:
    ensure_file(path)
    with redirect_to_file(stream, path):
        yield
