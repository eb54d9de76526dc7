"""Copying an embedded home while it is in use."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from resources.store import (
    CellStore,
)
from resources.tracking.backlog import copy_backlog

if TYPE_CHECKING:
    pass

# Where an embedded home keeps SQLite databases, and what else of it is worth keeping.
DATABASES = ("history", "schedules", "mlflow")
FILES = ("dagster.yaml",)


class BackupError(RuntimeError):
    """A home cannot be copied there, or not by this command."""


def backup(home: Path, store: CellStore, target: Path, log: Callable[[str], None] = lambda line: None) -> int:
    """Copy an embedded home while it is in use: its databases, its store, its settings. The copy is a home.

    Databases come first and the cells after them, so that no event of the copy is about a cell that it lacks; a cell
    that was made meanwhile is computed again there. Every byte of a cell is verified on its way. What waits for MLflow
    comes before MLflow's database: what was told meanwhile is told the copy again, with the same effect.

    Returns:
        The number of cells.

    Raises:
        BackupError: where the folder is not empty, or the store is a server.
        DamagedCellError: when a cell is not what was written.
    """
    if store.remote:
        raise BackupError(
            f"the store {store.url} is a server's: back it up there; this command copies an embedded home"
        )
    if target.exists() and any(target.iterdir()):
        raise BackupError(f"{target} is not empty")
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (home / name).is_file():
            shutil.copy(home / name, target / name)
    copy_of_store, copied = CellStore(str(target / "store")), 0
    copy_backlog(store, copy_of_store)
    for folder in DATABASES:
        for path in sorted((home / folder).rglob("*")):
            copy = target / path.relative_to(home)
            if path.suffix in (".db", ".sqlite"):
                copy.parent.mkdir(parents=True, exist_ok=True)
                _copy_database(path, copy)
            elif path.is_file() and not path.name.endswith(("-wal", "-shm", "-journal")):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
    log("databases are copied")
    for cell in store.cells(""):
        store.open(cell).copy_to(copy_of_store)
        copied += 1
    return copied


def _copy_database(source: Path, target: Path) -> None:
    """As SQLite copies one that others write to: as it is at one moment."""
    with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as opened, sqlite3.connect(target) as copy:
        opened.backup(copy)
    opened.close()
    copy.close()
