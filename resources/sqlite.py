"""Dagster's storage in SQLite, with connections that stay open.

Dagster opens a database anew for each question, and SQLite does the most when the last connection to one is closed: it
moves what was written from the log into the database, and deletes the log. Here a connection is used again. The tables,
the files and all that is asked of them are Dagster's own.

Why: docs/decisions/0034-sqlite-stays-open.md
"""

import json
import os
import sqlite3
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from cachetools import LRUCache
from dagster import Field, StringSource
from sqlalchemy import Connection, Engine, create_engine, event

from dioptra_assets.dagster_internals import (
    INDEX_SHARD_NAME,
    SQLITE_BUSY_TIMEOUT_SECONDS,
    ConfigurableClassData,
    DagsterSqliteStorage,
    InstanceRef,
    SqliteEventLogStorage,
    SqliteRunStorage,
    SqliteScheduleStorage,
)
from resources.settings import home

# Each run has a database of its own for its log.
RUNS_KEPT_OPEN = 16


class _Engines(LRUCache[tuple[int, str], Engine]):
    """Engines by process and database: a connection is not for the child of the process that opened it."""

    def popitem(self) -> tuple[tuple[int, str], Engine]:
        key, engine = super().popitem()
        engine.dispose()
        return key, engine


class _Kept:
    """The open databases of a storage."""

    def __init__(self) -> None:
        self._engines = _Engines(RUNS_KEPT_OPEN)
        self._lock = threading.Lock()
        self._beginning: bytes | None = None

    def engine(self, url: str) -> Engine:
        """The engine of a database, made when it is first asked for."""
        key = os.getpid(), url
        with self._lock:
            if key not in self._engines:
                engine = create_engine(url, max_overflow=-1, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS})
                event.listen(engine, "connect", _synchronous)
                self._engines[key] = engine
            return self._engines[key]

    def began_as_another(self, path: Path) -> bool:
        """Make the database of a run as a copy of one that was as new, which Dagster's migrations take long to make.

        Returns:
            Whether it was made. It is not if this process has made none yet, or if the database exists.
        """
        if self._beginning is None or path.exists():
            return False
        made = path.with_name(f"{path.name}.{os.getpid()}")  # not among the databases of runs
        made.write_bytes(self._beginning)
        try:
            os.link(made, path)  # whole or not at all, and never over one that another process has made meanwhile
        except OSError:
            return False
        finally:
            made.unlink()
        return True

    def keep_beginning(self, path: Path) -> None:
        """Remember the database of a run that nothing has been written to."""
        with closing(sqlite3.connect(path)) as connection:
            if not connection.execute("SELECT count(*) FROM event_logs").fetchone()[0]:
                self._beginning = connection.serialize()

    def close(self) -> None:
        """Close what this process has opened."""
        with self._lock:
            for (process, _), engine in self._engines.items():
                engine.dispose(close=process == os.getpid())
            self._engines.clear()


def _synchronous(connection: Any, _: Any) -> None:
    """Do not wait for the disk at each event: the log keeps SQLite sound, and a power cut loses only the last events.

    Their cells are then computed again. Nothing is lost when a process is killed.
    """
    connection.execute("PRAGMA synchronous = NORMAL")


class _OneDatabase:
    """How a storage that is one database connects."""

    _conn_string: str

    @contextmanager
    def connect(self) -> Generator[Connection]:
        with _kept(self).engine(self._conn_string).begin() as connection:
            yield connection

    def dispose(self) -> None:
        _kept(self).close()


class _RunStorage(_OneDatabase, SqliteRunStorage):
    @classmethod
    def of(cls, storage: SqliteRunStorage) -> Self:
        return cls(storage._conn_string)


class _ScheduleStorage(_OneDatabase, SqliteScheduleStorage):
    @classmethod
    def of(cls, storage: SqliteScheduleStorage) -> Self:
        return cls(storage._conn_string)


class _EventLogStorage(SqliteEventLogStorage):
    _initialized_dbs: set[str]

    @classmethod
    def of(cls, storage: SqliteEventLogStorage) -> Self:
        return cls(storage._base_dir)

    @contextmanager
    def _connect(self, shard: str) -> Generator[Connection]:
        url = self.conn_string_for_shard(shard)
        # One at a time, as Dagster has it.
        with self._db_lock:
            engine = _kept(self).engine(url)
            if shard not in self._initialized_dbs:
                if shard == INDEX_SHARD_NAME:
                    self._initdb(engine, for_index_shard=True)
                elif not _kept(self).began_as_another(Path(self.path_for_shard(shard))):
                    self._initdb(engine)
                    _kept(self).keep_beginning(Path(self.path_for_shard(shard)))
                self._initialized_dbs.add(shard)
            with engine.begin() as connection:
                yield connection

    def wipe(self) -> None:
        _kept(self).close()  # the files go
        super().wipe()

    def dispose(self) -> None:
        super().dispose()
        _kept(self).close()


def _kept(storage: Any) -> _Kept:
    """The open databases of a storage. Made on demand: Dagster's constructors ask for connections before they end."""
    return storage.__dict__.setdefault("kept", _Kept())


class KeptSqliteStorage(DagsterSqliteStorage):
    """`DagsterSqliteStorage`, whose connections stay open."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)  # makes the tables
        self._run_storage = _RunStorage.of(self._run_storage)
        self._schedule_storage = _ScheduleStorage.of(self._schedule_storage)
        self._event_log_storage = _EventLogStorage.of(self._event_log_storage)

    @classmethod
    def config_type(cls) -> Any:
        """The folder; left out, it is the home, also in a shell that does not name one."""
        return {"base_dir": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> "KeptSqliteStorage":
        """As Dagster makes it of `dagster.yaml`."""
        return cls.from_local(inst_data=inst_data, **({"base_dir": str(home())} | config_value))


def with_kept_connections(ref: InstanceRef, folder: str) -> InstanceRef:
    """An instance of this folder, whose connections stay open where it is kept in SQLite."""
    storage = ref.storage_data
    if storage is None or storage.class_name not in (DagsterSqliteStorage.__name__, KeptSqliteStorage.__name__):
        return ref
    kept = ConfigurableClassData(__name__, KeptSqliteStorage.__name__, json.dumps({"base_dir": folder}))
    return ref._replace(storage_data=kept)
