"""Calls with a deadline: a server may hang, or answer one byte per second, which no read timeout notices."""

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def within(seconds: float, call: Callable[..., Result], *arguments: Any, **keywords: Any) -> Result:
    """The result of a call, if it ends in time.

    The call runs in a separate thread. A thread cannot be stopped, so a late call goes on and its result is dropped;
    it does not keep the process from ending.

    Raises:
        TimeoutError: after `seconds`.
        BaseException: whatever the call raises.
    """
    outcome: list[Any] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome.append((context.run(call, *arguments, **keywords), None))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            outcome.append((None, error))

    thread = threading.Thread(target=work, name="call with a deadline", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no whole answer within {seconds:.0f} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


class Deadlined:
    """A proxy whose methods all have a deadline: each calls the object behind it through :func:`within`."""

    def __init__(self, behind: Any, seconds: float) -> None:
        self._behind = behind
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._behind, name)
        if not callable(method):
            return method

        def in_time(*arguments: Any, **keywords: Any) -> Any:
            return within(self._seconds, method, *arguments, **keywords)

        return in_time

    def given(self, seconds: float) -> "Deadlined":
        """The same object with another deadline, for calls that are known to take longer."""
        return Deadlined(self._behind, seconds)
