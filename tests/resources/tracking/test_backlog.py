"""MLflow that hangs, drips or is away holds no cell up, and is told everything when it is back."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from resources.store import CellStore
from resources.tracking import client as mlflow_client
from resources.tracking import resource as tracking_module
from resources.tracking.backlog import FOLDER, WAITING, tracked_run, write_backlog
from resources.tracking.resource import Tracking, TrackingUnavailable
from tests.resources.tracking.test_resource import hanging_server, refusing_server, stub_mlflow, tracking_in

SILENT = {"tags": {"asset": "digits/model"}, "params": {"epochs": 3}}


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_client, "PROBE_TIMEOUT", 1.0)
    monkeypatch.setattr(mlflow_client, "CALL_DEADLINE", 2.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    tracking = tracking_in(tmp_path_factory.mktemp("mlflow"))
    tracking.initialise()
    return tracking


@pytest.fixture
def tracking(ready: Tracking) -> Tracking:
    """A real MLflow on SQLite, which answers."""
    ready.ask_again()
    return ready


@contextmanager
def dripping_server(honest: bytes = b"") -> Iterator[str]:
    """Sends a byte of its answer each quarter of a second, so that no read ever times out.

    Args:
        honest: how the request begins that is answered at once: `GET /health`.
    """
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            asked = connection.recv(65536)
            if honest and asked.startswith(honest):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not stop.wait(0.25):
                try:
                    connection.sendall(b"{")
                except OSError:
                    return

    def accept(server: socket.socket) -> None:
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()


@contextmanager
def dripping_after_health() -> Iterator[str]:
    with dripping_server(b"GET /health") as uri:
        yield uri


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("server", [dripping_server, dripping_after_health, hanging_server, refusing_server])
def test_a_server_that_drips_or_hangs_costs_one_deadline_and_then_nothing(
    server: Callable[[], AbstractContextManager[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, lines = CellStore(str(tmp_path)), []
    asked: list[str] = []
    probe = mlflow_client.require_answer
    monkeypatch.setattr(tracking_module, "require_answer", lambda uri: (asked.append(uri), probe(uri)))
    mlflow_client.open_client("http://127.0.0.1:9")  # what it imports is no waiting for a server
    with server() as uri:
        for _ in range(3):  # cells, each with a resource of its own
            began = time.monotonic()
            tracking = Tracking(mlflow_tracking_uri=uri)
            with tracked_run(tracking, store, "digits", "model", log=lines.append, **SILENT) as run:
                run.log_metrics({"accuracy": 0.5})
            assert time.monotonic() - began < 60, "what drips sends for four minutes"
    assert len(asked) == 1, "after a failure MLflow is left alone for a while"
    assert len(lines) == 3
    assert "secret" not in "".join(lines)
    assert "no whole answer within" in lines[0] or "refused" in lines[0] or "timed out" in lines[0], lines[0]


def test_the_pause_grows_and_ends_when_the_server_is_back() -> None:
    with stub_mlflow() as (uri, _):
        tracking = Tracking(mlflow_tracking_uri=uri)
        pauses = []
        for _ in range(4):
            away(tracking)
            outage = tracking_module._outages[uri]
            pauses.append(outage.pause)
            assert 0 < outage.until - time.monotonic() <= outage.pause
            outage.until = 0.0  # it has passed
        assert pauses == [30, 60, 120, 120]
        tracking.open_run("digits", "cell", tags={})
        assert uri not in tracking_module._outages


def noted(name: str, method: Callable[..., Any], asked: list[str]) -> Callable[..., Any]:
    """The method, whose name is noted with each call."""

    def call(*arguments: Any, **options: Any) -> Any:
        asked.append(name)
        return method(*arguments, **options)

    return call


def test_the_run_of_a_cell_is_four_requests_and_its_experiment_is_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = tracking_in(tmp_path)
    asked: list[str] = []
    for name in ("get_experiment_by_name", "create_experiment", "create_run", "log_batch", "set_terminated"):
        monkeypatch.setattr(MlflowClient, name, noted(name, getattr(MlflowClient, name), asked))
    for cell in range(3):
        with tracked_run(tracking, CellStore(str(tmp_path)), "digits", "set", log=print, **SILENT) as run:
            run.log_metrics({"n": cell}, tags={"seed": "7"}, params={"attack": "fgm"})
        assert asked[-4:] == ["create_run", "log_batch", "log_batch", "set_terminated"]
        found = MlflowClient(tracking.mlflow_tracking_uri).get_run(run.run_id).data
        assert (found.metrics, found.params) == ({"n": cell}, {"epochs": "3", "attack": "fgm"})
        assert found.tags["seed"] == "7"
    assert asked[:-12] == ["get_experiment_by_name", "create_experiment"]


def test_what_is_told_with_the_numbers_waits_with_them(tracking: Tracking, tmp_path: Path) -> None:
    store = CellStore(str(tmp_path))
    away(tracking)
    with tracked_run(tracking, store, "digits", "told late", log=print, tags={}, params={}) as run:
        run.log_metrics({"n": 2}, tags={"seed": 7}, params={"attack": "fgm"})
    tracking.ask_again()
    ((_, run_id, _),) = write_backlog(tracking, store).runs
    found = MlflowClient(tracking.mlflow_tracking_uri).get_run(run_id).data
    assert (found.metrics, found.params, found.tags["seed"]) == ({"n": 2}, {"attack": "fgm"}, "7")


def test_a_run_cut_short_by_an_outage_is_finished_when_mlflow_is_back(tracking: Tracking, tmp_path: Path) -> None:
    store = CellStore(str(tmp_path))
    history = pd.DataFrame({"epoch": [1, 2], "loss": [0.9, 0.5]})
    with tracked_run(tracking, store, "digits", "model", log=print, **SILENT) as run:
        run.log_history(history)
        away(tracking)
        run.log_metrics({"accuracy": 0.75}, 3)
        run.log_text("tables/a.csv", "é\n")
    assert run.run_id
    client = MlflowClient(tracking.mlflow_tracking_uri)
    assert client.get_run(run.run_id).info.status == "RUNNING"
    waiting = write_backlog(tracking, store)
    assert (waiting.runs, waiting.waiting) == ([], 1)
    assert "not asked again" in waiting.why

    tracking.ask_again()
    written = write_backlog(tracking, store)
    assert [(run_id, waits) for _, run_id, waits in written.runs] == [(run.run_id, None)]
    assert (written.waiting, written.why) == (0, "")
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"epochs": "3"}
    assert stored.data.metrics == {"loss": 0.5, "accuracy": 0.75}
    assert [(one.step, one.value) for one in client.get_metric_history(run.run_id, "accuracy")] == [(3, 0.75)]
    assert Path(client.download_artifacts(run.run_id, "tables/a.csv")).read_text() == "é\n"
    assert store.sizes(FOLDER) == {}
    assert write_backlog(tracking, store).runs == []


def test_a_model_that_was_trained_while_mlflow_was_away_is_registered_once(tracking: Tracking, tmp_path: Path) -> None:
    store = CellStore(str(tmp_path))
    model = tmp_path / "model.keras"
    model.write_bytes(b"PK" + bytes(range(256)))
    away(tracking)
    before = time.time() * 1000
    with tracked_run(tracking, store, "digits", "model", log=print, **SILENT) as run:
        assert run.register_model("digits_le_net", model, {"architecture": "le_net"}) == WAITING
    assert not run.run_id
    model.unlink()
    tracking.ask_again()
    told = time.time() * 1000

    # The first who tells it is killed just before it takes the entry away; the second finds what was done.
    content = {path: store.get(f"{FOLDER}/{path}") for path in store.sizes(FOLDER)}
    ((tags, run_id, _),) = write_backlog(tracking, store).runs
    for path, kept in content.items():
        store.put(f"{FOLDER}/{path}", kept or b"")
    ((_, again, _),) = write_backlog(tracking, store).runs
    assert again == run_id
    assert tags == {"asset": "digits/model"}
    client = MlflowClient(tracking.mlflow_tracking_uri)
    (version,) = client.search_model_versions("name = 'digits_le_net'")
    assert (int(version.version), version.run_id, version.tags["architecture"]) == (1, run_id, "le_net")
    assert tracking.fetch_model("digits_le_net", 1, tmp_path / "fetched").read_bytes() == b"PK" + bytes(range(256))
    info = client.get_run(run_id).info
    assert info.start_time
    assert before - 1 <= info.start_time <= told, "the time of the cell"


def test_two_who_tell_mlflow_at_once_write_an_entry_once(tracking: Tracking, tmp_path: Path) -> None:
    store = CellStore(str(tmp_path))
    away(tracking)
    for number in range(4):
        with tracked_run(tracking, store, "at_once", f"cell {number}", log=print, **SILENT):
            pass
    tracking.ask_again()
    found: list[str] = []

    def tell() -> None:
        found.extend(run_id for _, run_id, _ in write_backlog(tracking, store).runs)

    threads = [threading.Thread(target=tell) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 4
    client = MlflowClient(tracking.mlflow_tracking_uri)
    experiment = client.get_experiment_by_name("at_once")
    assert experiment
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_a_cell_that_fails_while_mlflow_is_away_fails_for_its_own_reason(tracking: Tracking, tmp_path: Path) -> None:
    store = CellStore(str(tmp_path))
    away(tracking)
    with (
        pytest.raises(ValueError, match="of the cell"),
        tracked_run(tracking, store, "digits", "model", log=print, **SILENT),
    ):
        raise ValueError("of the cell")
    (path,) = store.sizes(FOLDER)
    assert json.loads(store.get(f"{FOLDER}/{path}") or b"")["status"] == "FAILED"


def away(tracking: Tracking) -> None:
    """MLflow has just failed to answer somebody."""
    with pytest.raises(TrackingUnavailable), tracking.reaching("trying"):
        raise ConnectionError("away")
