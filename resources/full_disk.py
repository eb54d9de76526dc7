"""A full disk under the home, where Dagster and MLflow keep their records: a sentence in place of tracebacks."""

import errno
import shutil
import sqlite3
from pathlib import Path

# What a launch of a small experiment writes beside the store, with some room to breathe.
WANTED = 50_000_000


class NoRoomError(RuntimeError):
    """The disk of the home is full; the message says which, and what is free."""


def no_room(error: BaseException, folder: Path) -> NoRoomError | None:
    """The message for an error caused by a full disk under a folder; None for any other error."""
    step: BaseException | None = error
    while step is not None:
        if _is_full(step):
            usage = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists()))
            return NoRoomError(
                f"{folder}: the disk is full ({usage.free:,} bytes are free), and the record of what is computed could"
                f" not be written. Make room, {WANTED:,} bytes beside the store are enough for most launches; the same"
                " command goes on"
            )
        step = getattr(step, "orig", None) or step.__cause__ or step.__context__
    return None


def _is_full(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
