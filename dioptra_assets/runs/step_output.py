"""Where the steps of a run in this process write: to the log of the run, which the UI shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dioptra_assets.dagster_internals import ensure_file, local_compute_log_manager, redirect_to_file

_manager: Any = local_compute_log_manager


@contextmanager
def to_the_log_alone() -> Iterator[None]:
    """Send what steps write to stdout and stderr to the log of their run, and not to the terminal as well.

    The terminal shows how far a launch is. Dagster would mirror each stream through two processes a step, which cost a
    Python start each and answer Ctrl-C with tracebacks of their own.
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
