"""Ctrl-C and SIGTERM: work ends within five seconds, whatever it is doing, and in one line.

Dagster catches both signals while it leads a run and reports them as a failed step, so that what comes after it would
go on; and native code holds them back for as long as it runs. Here a thread hears of a signal at once. It gives the
main thread some seconds to unwind, and ends the process itself where that takes longer, or a second signal comes.
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
# How long work may take to unwind, and what must be told to others (Dagster's run, its pool, MLflow) after that.
GRACE_SECONDS = 2.5
CLOSING_SECONDS = 1.5
# Two signals as close as this are one: a terminal and a parent process may both send it.
SAME_SECONDS = 0.3


class Interrupted(BaseException):
    """The process was told to end; no `KeyboardInterrupt`, which command line libraries answer with words of theirs."""


# What is done where work is ended by force, by another thread than the one that works; the last one first.
_closers: list[Callable[[], object]] = []
_lines: list[Callable[[], str]] = []


class _Watch:
    """Hears of signals in a thread of its own, and ends the process."""

    def __init__(self) -> None:
        self.signal = 0
        self._ending = threading.Lock()
        self._raised = False
        self._stderr = os.dup(2)  # a run sends what is written to stderr to its log
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
        """Close what is open, say what was kept, and leave; only the first call does anything."""
        self._ending.acquire()
        # In a thread: what does not answer must not keep the process.
        closing = threading.Thread(target=_close, daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)
        _end_children()
        said = [line() for line in _lines[-1:]]
        with suppress(OSError):
            os.write(self._stderr, ("; ".join(["interrupted", *said]) + "\n").encode())
        os._exit(128 + (self.signal or signal.SIGINT))


_watches: list[_Watch] = []  # one, in the process of a command


def watch() -> None:
    """Watch for signals from here on, in the process of a command; from the main thread."""
    if not _watches:
        _watches.append(_Watch())


def leave() -> NoReturn:
    """End the process of a command that was interrupted, with one line and exit code 130 (143 for SIGTERM)."""
    _watches[0].end()


@contextmanager
def closing(close: Callable[[], object]) -> Iterator[None]:
    """Have something closed should the process be ended by force meanwhile; it is called in another thread."""
    _closers.append(close)
    try:
        yield
    finally:
        _closers.remove(close)


@contextmanager
def saying(line: Callable[[], str]) -> Iterator[None]:
    """Have a sentence said, after "interrupted; ", should what is done here be interrupted."""
    _lines.append(line)
    try:
        yield
    except Interrupted:
        said = line()  # as it is now: what it tells of is gone when the process leaves
        _lines.append(lambda: said)
        raise
    finally:
        _lines.remove(line)


@contextmanager
def noticed() -> Iterator[Callable[[], None]]:
    """Gives a function that raises where a signal has come since, though whatever ran meanwhile has swallowed it.

    It raises :class:`Interrupted` in the process of a command, else `KeyboardInterrupt`.
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
                with suppress(OSError):  # an event loop that waits for its own signals hears of them all the same
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
