import hashlib
import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from resources.tracking.resource import ModelRefused, Tracking, TrackingUnavailable, registered_name

ROOT = Path(__file__).parents[3]


def tracking_in(folder: Path) -> Tracking:
    return Tracking(
        mlflow_tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_location=str(folder / "artifacts")
    )


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    # A folder such as people have: MLflow cuts a bare path at '#'.
    ready = tracking_in(tmp_path_factory.mktemp("home") / "my runs #1 é")
    ready.initialise()
    return ready


@pytest.fixture
def client(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The client that a user makes: it knows the environment variable alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.mlflow_tracking_uri)
    return MlflowClient()


@pytest.fixture
def keras_file(tmp_path: Path) -> Path:
    path = tmp_path / "le_net.keras"
    path.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 20)
    return path


def register(tracking: Tracking, keras_file: Path, name: str) -> tuple[str, str]:
    with tracking.run("registry", name, tags={}, params={}) as run:
        return run.register_model(name, keras_file, {"architecture": "le_net"}), run.run_id


def stored_model(tracking: Tracking, run_id: str) -> Path:
    return Path(tracking.artifact_location) / "registry" / run_id / "artifacts" / "model"


# One run per cell


def test_a_users_own_client_reads_back_what_a_cell_logged(tracking: Tracking, client: MlflowClient) -> None:
    with tracking.run(
        "digits", "le_net|fgm_0.3", tags={"attack": "fgm_0.3"}, params={"eps": 0.3, "norm": "inf"}
    ) as run:
        run.log_metrics({"robust_accuracy": 0.12, "asr": 0.875})
        run.log_tags({"data_version": "abc"})
        run.log_text("tables/metrics.csv", "é,1\n")
        run.log_bytes("pixels.bin", b"\x00\xff")
    stored = client.get_run(run.run_id)
    assert stored.data.metrics == {"robust_accuracy": 0.12, "asr": 0.875}
    assert stored.data.params == {"eps": "0.3", "norm": "inf"}
    assert stored.data.tags["attack"] == "fgm_0.3"
    assert stored.data.tags["data_version"] == "abc"
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "le_net|fgm_0.3")
    assert Path(client.download_artifacts(run.run_id, "tables/metrics.csv")).read_text() == "é,1\n"
    assert Path(client.download_artifacts(run.run_id, "pixels.bin")).read_bytes() == b"\x00\xff"
    assert run.url is None


def test_artefacts_lie_in_the_configured_folder_and_none_in_the_working_folder(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with tracking.run("digits", "cell", tags={}, params={}) as run:
        run.log_text("note.txt", "here")
    notes = list(Path(tracking.artifact_location).glob(f"digits/{run.run_id}/artifacts/note.txt"))
    assert len(notes) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad cell"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (dg.DagsterExecutionInterruptedError(), "KILLED"),
    ],
)
def test_a_body_that_does_not_end_well_is_shown_so(
    tracking: Tracking, client: MlflowClient, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), tracking.run("digits", "cell", tags={}, params={}) as run:
        run.log_metrics({"before": 1.0})
        raise error
    stored = client.get_run(run.run_id)
    assert stored.info.status == status
    assert stored.data.metrics == {"before": 1.0}


def test_the_active_run_of_the_user_is_not_touched(tracking: Tracking, client: MlflowClient) -> None:
    mine = mlflow.start_run(experiment_id=client.create_experiment(f"mine-{time.time_ns()}"))
    try:
        with tracking.run("digits", "cell", tags={"a": "b"}, params={"p": 1}) as run:
            run.log_metrics({"m": 1.0})
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == mine.info.run_id != run.run_id
        stored = client.get_run(mine.info.run_id)
        assert (stored.info.status, stored.data.metrics, stored.data.params) == ("RUNNING", {}, {})
        assert client.get_run(run.run_id).info.status == "FINISHED"
    finally:
        mlflow.end_run()


def test_a_run_opened_by_hand_beside_another_does_not_join_it(tracking: Tracking, client: MlflowClient) -> None:
    with (
        tracking.run("digits", "one", tags={}, params={"eps": 0.1}) as one,
        tracking.run("digits", "two", tags={}, params={"eps": 0.2}) as two,
    ):
        assert one.run_id != two.run_id
    assert client.get_run(one.run_id).data.params == {"eps": "0.1"}
    assert client.get_run(two.run_id).data.params == {"eps": "0.2"}


def test_numbers_that_are_not_finite_are_named_and_never_stored(tracking: Tracking, client: MlflowClient) -> None:
    with tracking.run("digits", "cell", tags={}, params={}) as run:
        run.log_metrics({"good": 1, "nan": math.nan, "inf": -math.inf})
        run.log_metrics({"later": math.nan})
    data = client.get_run(run.run_id).data
    assert data.metrics == {"good": 1.0}
    assert data.tags["non_finite_metrics"] == "inf, later, nan"


def test_a_history_is_one_point_per_epoch(tracking: Tracking, client: MlflowClient) -> None:
    history = pd.DataFrame({"epoch": [1, 2, 3], "loss": [0.9, 0.5, math.nan], "accuracy": [0.7, 0.8, 0.9]})
    with tracking.run("digits", "cell", tags={}, params={}) as run:
        run.log_history(history)
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(1, 0.9), (2, 0.5)]
    assert [m.step for m in client.get_metric_history(run.run_id, "accuracy")] == [1, 2, 3]
    assert "epoch" not in client.get_run(run.run_id).data.metrics


def test_many_and_long_values_are_kept_as_far_as_mlflow_allows(tracking: Tracking, client: MlflowClient) -> None:
    params = {f"p{i}": i for i in range(150)} | {"long": "x" * 7000}
    history = pd.DataFrame({"loss": [float(i) for i in range(1500)]})
    with tracking.run("digits", "cell", tags={"long": "y" * 9000}, params=params) as run:
        run.log_history(history)
    data = client.get_run(run.run_id).data
    assert len(data.params) == 151
    assert len(data.params["long"]) == 6000
    assert data.params["long"].endswith("x...")
    assert data.tags["long"].endswith("y...")
    assert len(client.get_metric_history(run.run_id, "loss")) == 1500


def test_settings_named_as_dagster_mlflows_tag_every_run(
    tracking: Tracking, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_TAG", "v7")
    monkeypatch.setenv("MLFLOW_TEST_SETTING", "0")
    configured = Tracking(
        mlflow_tracking_uri=tracking.mlflow_tracking_uri,
        artifact_location=tracking.artifact_location,
        extra_tags={"team": "red", "attack": "overridden"},
        env_to_tag=["IMAGE_TAG", "ABSENT"],
        env={"MLFLOW_TEST_SETTING": "1"},
    )
    with configured.run("digits", "cell", tags={"attack": "fgm"}, params={}) as run:
        pass
    tags = client.get_run(run.run_id).data.tags
    assert {k: tags[k] for k in ("team", "attack", "IMAGE_TAG")} == {"team": "red", "attack": "fgm", "IMAGE_TAG": "v7"}
    assert "ABSENT" not in tags
    assert os.environ["MLFLOW_TEST_SETTING"] == "1"


def test_a_deleted_experiment_is_restored(tracking: Tracking, client: MlflowClient) -> None:
    with tracking.run("binned", "one", tags={}, params={}) as one:
        pass
    experiment_id = client.get_run(one.run_id).info.experiment_id
    client.delete_experiment(experiment_id)
    with tracking.run("binned", "two", tags={}, params={}) as two:
        pass
    assert client.get_run(two.run_id).info.experiment_id == experiment_id
    assert client.get_experiment(experiment_id).lifecycle_stage == "active"


def test_a_dagster_asset_uses_it_as_a_resource(tracking: Tracking, client: MlflowClient) -> None:
    @dg.asset
    def cell(tracking: Tracking) -> dg.MaterializeResult:
        with tracking.run("digits", "cell", tags={}, params={}) as run:
            return dg.MaterializeResult(metadata={"mlflow_run": run.run_id})

    result = dg.materialize([cell], resources={"tracking": tracking})
    run_id = result.asset_materializations_for_node("cell")[0].metadata["mlflow_run"].value
    assert client.get_run(str(run_id)).info.status == "FINISHED"


# A new database


def test_two_processes_may_initialise_one_new_database_at_once(tmp_path: Path) -> None:
    code = """
import sys, time, pathlib
import mlflow.store.tracking.sqlalchemy_store
from resources.tracking.resource import Tracking
folder, me, other = map(pathlib.Path, sys.argv[1:])
tracking = Tracking(mlflow_tracking_uri=f"sqlite:///{folder}/new/mlflow.db", artifact_location=f"{folder}/artifacts")
me.touch()
while not other.exists():
    time.sleep(0.002)
with tracking.run("digits", me.name, tags={}, params={}) as run:
    run.log_metrics({"m": 1.0})
"""
    starters = []
    for me, other in (("a", "b"), ("b", "a")):
        # Another temporary folder each, as in two containers on one volume: MLflow's own lock lies there.
        scratch = tmp_path / f"tmp-{me}"
        scratch.mkdir()
        starters.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path), str(tmp_path / me), str(tmp_path / other)],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(scratch)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for starter in starters:
        _, errors = starter.communicate(timeout=120)
        assert starter.returncode == 0, errors
    client = MlflowClient(f"sqlite:///{tmp_path}/new/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments() if e.name == "digits"]
    assert len(experiments) == 1
    assert sorted(str(run.info.run_name) for run in client.search_runs(experiments)) == ["a", "b"]


def test_a_file_that_is_no_database_is_said_to_be_none_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database " * 100)
    began = time.monotonic()
    with pytest.raises(TrackingUnavailable, match=r"mlflow\.db.*not a database"):
        tracking_in(tmp_path).initialise()
    assert time.monotonic() - began < 10
    assert (tmp_path / "mlflow.db").read_bytes().startswith(b"not a database")


@pytest.mark.parametrize(("there_before", "journal"), [(True, "delete"), (False, "wal")])
def test_only_a_new_database_gets_a_write_ahead_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool, journal: str
) -> None:
    monkeypatch.setattr("resources.tracking.resource.open_client", lambda uri: uri)
    if there_before:
        with sqlite3.connect(tmp_path / "mlflow.db") as connection:
            connection.execute("PRAGMA user_version = 1")
    tracking_in(tmp_path).initialise()
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == (journal,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mlflow_tracking_uri": "/home/me/mlruns"}, "'/home/me/mlruns' is not supported: give sqlite"),
        ({"mlflow_tracking_uri": "file:///mlruns"}, "'file:///mlruns' is not supported"),
        ({"mlflow_tracking_uri": "sqlite://", "artifact_location": "a"}, "'sqlite://' names no file"),
        ({"mlflow_tracking_uri": "sqlite:////m.db"}, "artifact_location is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_give(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tracking(**settings).initialise()  # type: ignore[arg-type]


# The registry


@pytest.mark.parametrize(("tag", "name"), [("", "digits_le_net"), ("robust", "digits_robust_le_net")])
def test_the_registered_name_leaves_out_an_empty_tag(tag: str, name: str) -> None:
    assert registered_name("digits", tag, "le_net") == name


def test_a_registered_model_comes_back_byte_for_byte(
    tracking: Tracking, client: MlflowClient, keras_file: Path, tmp_path: Path
) -> None:
    first, run_id = register(tracking, keras_file, "round_le_net")
    second, _ = register(tracking, keras_file, "round_le_net")
    assert (first, second) == ("1", "2")
    fetched = tracking.fetch_model("round_le_net", first, tmp_path / "fetched")
    assert fetched.read_bytes() == keras_file.read_bytes()
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == ["round_le_net@1.keras"]
    version = client.get_model_version("round_le_net", first)
    assert version.run_id == run_id
    assert version.tags == {
        "architecture": "le_net",
        "sha256": hashlib.sha256(keras_file.read_bytes()).hexdigest(),
    }
    assert [path.name for path in stored_model(tracking, run_id).iterdir()] == ["le_net.keras"]


def test_one_flipped_byte_is_refused_by_digest(tracking: Tracking, keras_file: Path, tmp_path: Path) -> None:
    version, run_id = register(tracking, keras_file, "flipped_le_net")
    stored = stored_model(tracking, run_id) / "le_net.keras"
    content = bytearray(stored.read_bytes())
    content[1000] ^= 1
    stored.write_bytes(content)
    with pytest.raises(ModelRefused, match=r"'flipped_le_net': sha256 of model/le_net\.keras is"):
        tracking.fetch_model("flipped_le_net", version, tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []


def test_an_mlmodel_file_beside_the_model_is_refused_and_never_obeyed(
    tracking: Tracking, keras_file: Path, tmp_path: Path
) -> None:
    version, run_id = register(tracking, keras_file, "planted_le_net")
    folder = stored_model(tracking, run_id)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: evil\n    code: .\n")
    with pytest.raises(ModelRefused, match=r"must be one \.keras file.*MLmodel"):
        tracking.fetch_model("planted_le_net", version, tmp_path / "fetched")
    assert not (tmp_path / "ran").exists()


def test_a_version_that_somebody_else_registered_is_refused(
    tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    client.create_registered_model("foreign")
    version = client.create_model_version("foreign", source=str(tmp_path), tags={"sha256": "0" * 64})
    with pytest.raises(ModelRefused, match="not registered by this testbed"):
        tracking.fetch_model("foreign", version.version, tmp_path / "fetched")


def test_a_missing_version_is_named(tracking: Tracking, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no version 7 of the registered model 'nowhere'"):
        tracking.fetch_model("nowhere", 7, tmp_path)
    with tracking.run("digits", "cell", tags={}, params={}):
        pass  # and MLflow is not taken to be down for it


def test_only_one_keras_file_a_run_is_registered(tracking: Tracking, keras_file: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "model.pkl"
    pickled.write_bytes(b"\x80\x04.")
    with tracking.run("registry", "cell", tags={}, params={}) as run:
        with pytest.raises(ValueError, match=r"not a \.keras file"):
            run.register_model("strict", pickled, {})
        run.register_model("strict", keras_file, {})
        with pytest.raises(ValueError, match="has registered 'strict' already"):
            run.register_model("strict_again", keras_file, {})


# MLflow that is down


@contextmanager
def hanging_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://somebody:secret@127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def refusing_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://somebody:secret@127.0.0.1:{port}"


@pytest.mark.parametrize("server", [hanging_server, refusing_server])
def test_a_dead_server_is_an_error_within_seconds_and_at_once_the_next_time(
    server: Callable[[], AbstractContextManager[str]],
) -> None:
    with server() as uri:
        tracking = Tracking(mlflow_tracking_uri=uri)
        began = time.monotonic()
        with (
            pytest.raises(TrackingUnavailable, match=r"http://\*\*\*@127\.0\.0\.1") as caught,
            tracking.run("digits", "cell", tags={}, params={}),
        ):
            pytest.fail("the body ran without a run")
        assert time.monotonic() - began < 15
        assert "secret" not in str(caught.value)
        began = time.monotonic()
        with pytest.raises(TrackingUnavailable, match="not asked again"):
            tracking.initialise()
        assert time.monotonic() - began < 0.5


def test_a_dead_database_server_is_an_error_within_seconds() -> None:
    with refusing_server() as uri:
        tracking = Tracking(
            mlflow_tracking_uri=uri.replace("http", "postgresql+psycopg2"), artifact_location="s3://bucket"
        )
        began = time.monotonic()
        with pytest.raises(TrackingUnavailable, match="refused"):
            tracking.initialise()
        assert time.monotonic() - began < 15


@contextmanager
def stub_mlflow() -> Iterator[tuple[str, ThreadingHTTPServer]]:
    """Just enough of an MLflow server to open a run."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            experiment = {"experiment_id": "5", "name": "digits", "lifecycle_stage": "active"}
            info = {
                "run_id": "a" * 32,
                "experiment_id": "5",
                "status": "RUNNING",
                "artifact_uri": "mlflow-artifacts:/5",
            }
            body = json.dumps({"experiment": experiment, "run": {"info": info, "data": {}}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_lost_during_a_cell_costs_its_timeouts_once_and_hides_no_error() -> None:
    with stub_mlflow() as (uri, server):
        tracking = Tracking(mlflow_tracking_uri=uri)
        began = time.monotonic()
        with (
            pytest.raises(ValueError, match="of the cell") as caught,
            tracking.run("digits", "cell", tags={}, params={}) as run,
        ):
            assert run.url == f"{uri}/#/experiments/5/runs/{'a' * 32}"
            server.shutdown()
            server.server_close()
            for _ in range(5):
                with pytest.raises(TrackingUnavailable):
                    run.log_metrics({"m": 1.0})
            raise ValueError("an error of the cell")
        assert time.monotonic() - began < 20
        assert "was left open" in caught.value.__notes__[0]


def test_timeouts_are_short_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.tracking.resource.open_client", lambda uri: uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    tracking_in(tmp_path).initialise()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"


def test_importing_the_resource_does_not_import_mlflow() -> None:
    code = "import sys, resources.tracking.resource as r; print({'mlflow', 'dagster_mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
