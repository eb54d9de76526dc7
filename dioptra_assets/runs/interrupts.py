"""Ctrl-C and SIGTERM: work ends within five seconds, whatever it is doing, with one line of output.

Dagster catches both signals while it leads a run and reports them as a failed step, so the next step would go on.
Native code delays them for as long as it runs. Here a thread receives a signal at once. It gives the main thread a few
seconds to unwind, and ends the process itself if that takes longer or a second signal arrives.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How long work may take to unwind, and then to update others (Dagster's run, its pool, MLflow).
GRACE_SECONDS = 2.5
CLOSING_SECONDS = 1.5
# Signals closer together than this count as one: a terminal and a parent process may both send it.
SAME_SECONDS = 0.3


class Interrupted(BaseException):
    """The process was told to end. Not a `KeyboardInterrupt`: libraries print their own text for that."""


# Called, last one first, when work is ended by force. They run in another thread than the work.
_closers: list[Callable[[], object]] = []
_lines: list[Callable[[], str]] = []


class _Watch:
    """Receives signals in its own thread and ends the process."""

    def __init__(self) -> None:
        self.signal = 0
        self._ending = threading.Lock()
        self._raised = False
        self._stderr = os.dup(2)  # during a run, stderr goes to the log of the run
        self._heard, told = socket.socketpair()
        told.setblocking(False)
        self._told = told  # kept open
        for number in SIGNALS:
            signal.signal(number, self._raise)
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._raised:
            self._raised = True
            raise Interrupted

    def _listen(self) -> None:
        first = 0.0
        while True:
            try:
                number = self._heard.recv(1)[0]
            except TimeoutError:
                break
            if number not in SIGNALS:
                continue
            if not self.signal:
                self.signal, first = number, time.monotonic()
                self._heard.settimeout(GRACE_SECONDS)
            elif time.monotonic() - first > SAME_SECONDS:
                break
        self.end()

    def end(self) -> NoReturn:
        """Close what is open, print what was kept, and exit. Only the first call has an effect."""
        self._ending.acquire()
        # In a thread: a service that does not answer must not block the exit.
        closing = threading.Thread(target=_close, daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)
        _end_children()
        said = [line() for line in _lines[-1:]]
        with suppress(OSError):
            os.write(self._stderr, ("; ".join(["interrupted", *said]) + "\n").encode())
        os._exit(128 + (self.signal or signal.SIGINT))


_watches: list[_Watch] = []  # at most one, in the process of a command


def watch() -> None:
    """Watch for signals from now on. Call it from the main thread of a command."""
    if not _watches:
        _watches.append(_Watch())


def leave() -> NoReturn:
    """End an interrupted command with one line of output and exit code 130 (143 for SIGTERM)."""
    _watches[0].end()


@contextmanager
def closing(close: Callable[[], object]) -> Iterator[None]:
    """Call `close`, from another thread, if the process is ended by force inside the `with` block."""
    _closers.append(close)
    try:
        yield
    finally:
        _closers.remove(close)


@contextmanager
def saying(line: Callable[[], str]) -> Iterator[None]:
    """Print a line, after "interrupted; ", if the `with` block is interrupted."""
    _lines.append(line)
    try:
        yield
    except Interrupted:
        said = line()  # evaluated now: what it describes is gone when the process exits
        _lines.append(lambda: said)
        raise
    finally:
        _lines.remove(line)


@contextmanager
def noticed() -> Iterator[Callable[[], None]]:
    """Yields a function that raises if a signal has arrived since, even if other code swallowed it.

    It raises :class:`Interrupted` in the process of a command, and `KeyboardInterrupt` elsewhere.
    """
    if _watches or threading.current_thread() is not threading.main_thread():
        yield _raise_if_watched
        return
    heard, told = socket.socketpair()
    with heard, told:
        heard.setblocking(False)
        told.setblocking(False)
        before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        received = bytearray()

        def check() -> None:
            with suppress(BlockingIOError):
                received.extend(heard.recv(4096))
            if any(number in received for number in SIGNALS):
                raise KeyboardInterrupt

        try:
            yield check
        finally:
            signal.set_wakeup_fd(before)
            with suppress(BlockingIOError):
                received.extend(heard.recv(4096))
            if before != -1 and received:
                with suppress(OSError):  # pass them on to an event loop that waits for its own signals
                    os.write(before, received)


def _raise_if_watched() -> None:
    if _watches and _watches[0].signal:
        raise Interrupted


def _close() -> None:
    for close in reversed(_closers.copy()):
        with suppress(Exception):
            close()


def _end_children() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
