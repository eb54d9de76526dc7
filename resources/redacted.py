"""Keeping passwords in URLs out of messages, logs and the history of runs."""

import re


def without_passwords(text: str) -> str:
    """Text without the user and password of the URLs in it: `http://***@host`."""
    return re.sub(r"//[^/\s]*@", "//***@", text)


def as_cause(error: BaseException) -> BaseException | None:
    """An error to be named as the cause of another; None where it, or what caused it, tells a password.

    Dagster keeps the messages of causes in its event log.
    """
    step: BaseException | None = error
    while step is not None:
        if without_passwords(str(step)) != str(step):
            return None
        step = step.__cause__ or step.__context__
    return error
