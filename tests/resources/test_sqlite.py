"""Dagster's state of an embedded home: its own databases, opened once."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from sqlite3 import dbapi2
from typing import Any

import dagster as dg
import pytest

from dioptra_assets.dagster_internals import InstanceRef
from resources import settings, sqlite
from resources.instance import home_instance
from tests.conftest import ROOT
from tests.dagster_internals import make_new_run_id

KEY = dg.AssetKey("made_up")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The databases that were opened, once an opening."""
    databases: list[str] = []
    connect = dbapi2.connect

    def counted(database: str, *arguments: Any, **options: Any) -> sqlite3.Connection:
        databases.append(Path(database).name)
        return connect(database, *arguments, **options)

    monkeypatch.setattr(dbapi2, "connect", counted)
    yield databases


def report(instance: dg.DagsterInstance, partition: str) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=partition))


def partitions(instance: dg.DagsterInstance) -> set[str]:
    return instance.get_materialized_partitions(KEY)


def test_a_database_is_opened_once(folder: Path, opened: list[str]) -> None:
    with home_instance() as instance:
        report(instance, "first")
        opened.clear()
        for number in range(20):
            report(instance, str(number))
            instance.get_runs_count()
            assert str(number) in partitions(instance)
        assert len(opened) <= 2, opened


def log_of(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    """What the database of a run's log is made of."""
    with instance.event_log_storage.run_connection(run_id):  # type: ignore[attr-defined]
        pass
    with closing(sqlite3.connect(instance.event_log_storage.path_for_shard(run_id))) as connection:  # type: ignore[attr-defined]
        made = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
        made["version"] = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        made["journal"] = connection.execute("PRAGMA journal_mode").fetchone()[0]
        return made


def test_the_database_of_a_run_is_made_once_and_then_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    real = sqlite.SqliteEventLogStorage._initdb

    def counted(storage: Any, engine: Any, for_index_shard: bool = False) -> None:
        made.append(for_index_shard)
        real(storage, engine, for_index_shard)

    with home_instance() as instance:
        monkeypatch.setattr(sqlite.SqliteEventLogStorage, "_initdb", counted)
        runs = [make_new_run_id() for _ in range(5)]
        logs = [log_of(instance, run) for run in runs]
        assert made.count(False) == 1
        assert logs[0]["journal"] == "wal"
        assert "event_logs" in logs[0]
        assert all(log == logs[0] for log in logs)
        assert set(instance.event_log_storage.get_all_run_ids()) == set(runs)  # type: ignore[attr-defined]
        report(instance, "after")
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder))) as plain:
        assert log_of(plain, make_new_run_id()) == logs[0]


def test_the_log_of_a_run_that_another_process_has_begun_is_not_replaced(folder: Path) -> None:
    run_id = make_new_run_id()
    with home_instance() as instance, dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder))) as other:
        log_of(instance, make_new_run_id())
        log_of(other, run_id)
        path = Path(other.event_log_storage.path_for_shard(run_id))  # type: ignore[attr-defined]
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE mark (a)")
        assert "mark" in log_of(instance, run_id)
    assert not [file for file in path.parent.iterdir() if file.name.endswith(str(os.getpid()))]


def test_a_home_that_dagster_kept_is_the_same_home(folder: Path) -> None:
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder))) as plain:
        report(plain, "before")
        with home_instance() as kept:
            assert type(kept.event_log_storage).__module__ == sqlite.__name__
            assert partitions(kept) == {"before"}
            report(kept, "since")
            assert partitions(plain) == {"before", "since"}
            report(plain, "again")
            assert partitions(kept) == {"before", "since", "again"}


def test_a_home_elsewhere_is_left_to_where_it_is(folder: Path) -> None:
    storage = "storage: {postgres: {postgres_url: {env: NOBODY_HAS_SET_THIS}}}\n"
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n" + storage)
    with pytest.raises(Exception, match="NOBODY_HAS_SET_THIS"), home_instance():
        pass


def test_what_was_wiped_is_gone_and_what_comes_after_is_kept(folder: Path) -> None:
    with home_instance() as instance:
        report(instance, "before")
        instance.wipe()
        assert partitions(instance) == set()
        report(instance, "since")
        assert partitions(instance) == {"since"}
    with home_instance() as instance:
        assert partitions(instance) == {"since"}


def test_the_projects_settings_open_it_the_same_way(folder: Path) -> None:
    with home_instance() as instance:
        report(instance, "here")
    with dg.DagsterInstance.get() as instance:  # as the web server and the daemon do, with DAGSTER_HOME set
        assert type(instance.event_log_storage).__module__ == sqlite.__name__
        assert partitions(instance) == {"here"}


def test_dagster_records_in_the_home_whatever_the_shell_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("DIOPTRA_ASSETS_ENV", "")
    monkeypatch.setattr(settings, "project_root", lambda: tmp_path / "checkout")
    (tmp_path / "checkout").mkdir()
    shutil.copy(ROOT / "dagster.yaml", tmp_path / "checkout")
    # As `dg launch` and `dg check defs` open one in the folder of a checkout.
    temporary = InstanceRef.from_dir(str(tmp_path / "temporary"), config_dir=str(ROOT))
    with dg.DagsterInstance.from_ref(temporary) as instance:
        report(instance, "made")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "checkout"))
    with home_instance() as instance:
        assert partitions(instance) == {"made"}
