"""Back up an embedded home while it is in use."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from resources.store import CellStore
from resources.tracking.backlog import copy_backlog

# Folders of an embedded home with SQLite databases, and other files worth keeping.
DATABASES = ("history", "schedules", "mlflow")
FILES = ("dagster.yaml",)


class BackupError(RuntimeError):
    """The home cannot be backed up to this folder, or not by this command."""


def backup(home: Path, store: CellStore, target: Path, log: Callable[[str], None] = lambda line: None) -> int:
    """Copy an embedded home while it is in use: its databases, store and settings. The copy is itself a home.

    Databases are copied before cells, so that every event of the copy has its cell. A cell made in between is computed
    again there. Every byte of a cell is verified on the way. The MLflow backlog is copied before MLflow's database:
    entries logged in between are logged to the copy once more, with the same effect.

    Returns:
        Number of cells.

    Raises:
        BackupError: the folder is not empty, or the store is on a server.
        DamagedCellError: a cell differs from what was written.
    """
    if store.remote:
        raise BackupError(
            f"the store {store.url} is on a server: back it up there, this command only copies an embedded home"
        )
    if target.exists() and any(target.iterdir()):
        raise BackupError(f"{target} is not empty: give an empty or a new folder")
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
    log("databases copied")
    for cell in store.cells(""):
        store.open(cell).copy_to(copy_of_store)
        copied += 1
    return copied


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database that others may be writing to, as a snapshot of one moment."""
    with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as opened, sqlite3.connect(target) as copy:
        opened.backup(copy)
    opened.close()
    copy.close()
