"""Trials of models without the start of TensorFlow: forked off a process that has imported it and run nothing.

To fork after TensorFlow has run anything hangs, so the process that trials are forked off is itself forked before that,
by whoever has imported TensorFlow in good time. It serves the process that it was forked off and ends with it.

Why: docs/decisions/0009-models-are-files.md
"""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

import psutil

LONGEST_REQUEST = 1 << 16

_server: socket.socket | None = None


def begin(work: Callable[..., None]) -> None:
    """Fork off the process that trials are forked off.

    To be called while this process has one thread, and before TensorFlow has run anything in it.

    Args:
        work: what a trial does with its arguments; ends by itself where it may, for nobody else may be there to end it.
    """
    global _server  # noqa: PLW0603 - one a process, like what it is forked off
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        status = 1
        try:
            ours.close()
            _serve(theirs, work)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    _server = ours


def there_is_one() -> bool:
    """Whether trials can be forked here."""
    return _server is not None


def end() -> None:
    """Let that process end; trials are forked here no more."""
    global _server  # noqa: PLW0603 - see above
    if _server:
        _server.close()
    _server = None


class ForkedTrial:
    """A trial, with what is needed of `subprocess.Popen`.

    Args:
        arguments: of the work.
        environment: of the process, beside what it has.

    Raises:
        OSError: the process that trials are forked off is no more.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]):
        assert _server is not None
        self._socket = _server
        self.returncode: int | None = None
        try:
            self._socket.send(json.dumps([list(arguments), dict(environment)]).encode())
            said = self._socket.recv(LONGEST_REQUEST)
        except OSError:
            end()
            raise
        if not said:
            end()
            raise OSError("the process that trials are forked off is no more")
        self.pid = int(said)
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended already
            self._process = psutil.Process(self.pid)

    def poll(self) -> int | None:
        """Its status, as `subprocess` has it, None while it runs."""
        return self._status(socket.MSG_DONTWAIT)

    def wait(self) -> int | None:
        """Its status, once it has ended."""
        return self._status(0)

    def kill(self) -> None:
        """End it, where it has not ended."""
        if self.poll() is None and self._process:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.kill()

    def _status(self, flags: int) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(BlockingIOError):
                said = self._socket.recv(LONGEST_REQUEST, flags)
                self.returncode = int(said) if said else -signal.SIGKILL
                if not said:
                    end()
        return self.returncode


def _serve(asked: socket.socket, work: Callable[..., None]) -> None:
    """Fork a trial for each request: first its process id is told, then its status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks ends with it, and this ends with that
    while request := asked.recv(LONGEST_REQUEST):
        arguments, environment = json.loads(request)
        pid = os.fork()
        if pid == 0:
            _try(asked, work, arguments, environment)
        with contextlib.suppress(BrokenPipeError):
            asked.send(str(pid).encode())
            asked.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def _try(
    asked: socket.socket, work: Callable[..., None], arguments: Sequence[str], environment: Mapping[str, str]
) -> None:
    """In the process of a trial, which ends here."""
    status = 1
    try:
        asked.close()
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        os.environ.update(environment)
        work(*arguments)
        status = 0
    finally:
        os._exit(status)
