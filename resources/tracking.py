"""Tracking: one MLflow run for each materialized cell, and the registry of trained models.

Everything goes through `MlflowClient`: MLflow's global active run belongs to whoever uses MLflow in the same process
and is never read or changed, and MLflow loads no artefact, so nothing that a registry holds is ever executed. A server
that is down costs seconds: :class:`TrackingUnavailable` is raised, and what to do then is the caller's choice.
"""

import hashlib
import math
import os
import re
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

import dagster as dg
import pandas as pd
from pydantic import Field, PrivateAttr

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MODEL_FOLDER = "model"
DIGEST_TAG = "sha256"
NON_FINITE_TAG = "non_finite_metrics"
PROBE_TIMEOUT = 5.0
MIGRATION_TIMEOUT = 120.0
# After a failure the next cells of a backfill fail at once, instead of each waiting for its own timeouts.
RETRY_AFTER = 30.0

# MLflow's own defaults keep a cell waiting for four minutes when its server is down.
ENVIRONMENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class TrackingUnavailable(RuntimeError):  # noqa: N818 - a state of the world, not a mistake
    """MLflow cannot be reached or cannot store anything now. Nothing but the tracking of a cell is lost."""


class ModelRefused(ValueError):  # noqa: N818 - named for what happened to the model
    """A registered model is not, byte for byte, the one file that was registered."""


def registered_name(experiment: str, tag: str, architecture: str) -> str:
    """The name of a model in the registry: `{experiment}_{tag}_{architecture}`, without the tag when it is empty."""
    return "_".join(part for part in (experiment, tag, architecture) if part)


class Tracking(dg.ConfigurableResource):
    """Where MLflow keeps runs and registered models.

    The settings are named as in dagster-mlflow's `mlflow_tracking` where they mean the same.

    Example:
        >>> with tracking.run("digits", "model|le_net", tags={"architecture": "le_net"}, params={"epochs": 3}) as run:
        ...     run.log_metrics({"accuracy": 0.98})
    """

    mlflow_tracking_uri: str = Field(
        description="`sqlite:////path/mlflow.db`, another database URL (`postgresql+psycopg2://...`) or `http(s)://host`."
    )
    artifact_location: str = Field(
        default="",
        description="Folder or URL (`s3://bucket/prefix`) for the artefacts of experiments created here. Needed with a"
        " database URL; empty leaves the choice to the MLflow server.",
    )
    extra_tags: dict[str, str] = Field(default={}, description="Tags added to every MLflow run.")
    env: dict[str, str] = Field(
        default={},
        description="Environment variables for MLflow, e.g. `MLFLOW_S3_ENDPOINT_URL`; no secrets: shown in the UI.",
    )
    env_to_tag: list[str] = Field(default=[], description="Environment variables recorded as tags of every MLflow run.")

    _client: Any = PrivateAttr(default=None)
    _down_until: float = PrivateAttr(default=0.0)

    @property
    def is_server(self) -> bool:
        """Whether an MLflow server is spoken to, rather than a database."""
        return urlsplit(self.mlflow_tracking_uri).scheme in ("http", "https")

    def initialise(self) -> None:
        """Make ready what the first run needs: folders, and the schema of a new database (about 3 s, once).

        Safe when several processes start at once.

        Raises:
            TrackingUnavailable: MLflow cannot be reached, within about 5 s.
            ValueError: the tracking URI is of a kind that is not supported.
        """
        self._connect()

    @contextmanager
    def run(
        self, experiment: str, name: str, *, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> Iterator["CellRun"]:
        """Open an MLflow run for one cell, and close it whatever happens in the body.

        It ends FINISHED, FAILED when the body raises, KILLED when the body is interrupted. An error of the body is
        never replaced by one of MLflow's.

        Args:
            experiment: name of the MLflow experiment, created (or restored from MLflow's bin) when it is not there.
            name: shown as the name of the run.
            tags: of the run; they win over `extra_tags` of the same name.
            params: see :meth:`CellRun.log_params`.

        Raises:
            TrackingUnavailable: MLflow cannot be reached: before the body, or, where the body went well, after it.
        """
        client = self._connect()
        from_environment = {key: os.environ[key] for key in self.env_to_tag if key in os.environ}
        with self._reaching(f"opening a run of experiment {experiment!r}"):
            experiment_id = self._experiment_id(client, experiment)
            created = client.create_run(
                experiment_id, run_name=name, tags=_fitting_tags({**self.extra_tags, **from_environment, **tags})
            )
        cell_run = CellRun(self, client, created.info.run_id, experiment_id)
        try:
            cell_run.log_params(params)
            yield cell_run
        except BaseException as error:
            try:
                self._end(client, cell_run.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
            except TrackingUnavailable as unavailable:
                error.add_note(f"MLflow run {cell_run.run_id} was left open: {unavailable}")
            raise
        self._end(client, cell_run.run_id, "FINISHED")

    def fetch_model(self, name: str, version: str | int, into: Path) -> Path:
        """Download the model file of a registered version, and only if it is what was registered.

        MLflow's own loaders are never used and an MLmodel file is never read: whatever it asks to be run, is not.

        Args:
            name: registered model, see :func:`registered_name`.
            version: its version.
            into: folder for the file, made where it is missing.

        Returns:
            `into/NAME@VERSION.keras`.

        Raises:
            LookupError: there is no such version.
            ModelRefused: it was not registered by :meth:`CellRun.register_model`, or was altered since.
            TrackingUnavailable: MLflow cannot be reached.
        """
        from mlflow.exceptions import MlflowException

        client = self._connect()
        what = f"version {version} of the registered model {name!r}"
        with self._reaching(f"looking up {what}"):
            try:
                found = client.get_model_version(name, str(version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                found = None
        if found is None:
            raise LookupError(f"MLflow at {_shown(self.mlflow_tracking_uri)} has no {what}")
        expected = found.tags.get(DIGEST_TAG, "")
        if not found.run_id or not re.fullmatch("[0-9a-f]{64}", expected):
            raise ModelRefused(f"{what} has no run or no tag {DIGEST_TAG!r}: it was not registered by this testbed")
        with self._reaching(f"downloading {what}"):
            files = client.list_artifacts(found.run_id, MODEL_FOLDER)
        paths = [file.path for file in files]
        if len(files) != 1 or files[0].is_dir or not re.fullmatch(rf"{MODEL_FOLDER}/[^/\\]+\.keras", paths[0]):
            raise ModelRefused(f"{what} must be one .keras file in {MODEL_FOLDER}/, found {paths or 'nothing'}")
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".fetch-") as scratch:
            with self._reaching(f"downloading {what}"):
                downloaded = Path(client.download_artifacts(found.run_id, paths[0], scratch))
            actual = _sha256(downloaded)
            if actual != expected:
                raise ModelRefused(f"{what}: sha256 of {paths[0]} is {actual}, registered was {expected}")
            return downloaded.replace(into / f"{name}@{version}.keras")

    def _connect(self) -> "MlflowClient":
        uri = self.mlflow_tracking_uri
        scheme = self._checked_scheme()
        with self._reaching("connecting"):
            if self.is_server:
                _require_answer(uri)
            if self._client is None:
                os.environ.update(self.env)
                for variable, value in ENVIRONMENT_DEFAULTS.items():
                    os.environ.setdefault(variable, value)
                if self.artifact_location and "://" not in self.artifact_location:
                    Path(self.artifact_location).mkdir(parents=True, exist_ok=True)
                if scheme in DATABASE_PORTS:
                    _require_port(uri, DATABASE_PORTS[scheme])
                self._client = _open_sqlite(uri) if scheme == "sqlite" else _open_client(uri)
        return self._client

    def _checked_scheme(self) -> str:
        scheme = urlsplit(self.mlflow_tracking_uri).scheme.partition("+")[0]
        setting = f"mlflow_tracking_uri {_shown(self.mlflow_tracking_uri)!r}"
        if not self.is_server and scheme != "sqlite" and scheme not in DATABASE_PORTS:
            raise ValueError(
                f"{setting} is not supported: give sqlite:////path/mlflow.db, postgresql+psycopg2://... or http(s)://..."
            )
        if scheme == "sqlite" and self.mlflow_tracking_uri.partition("://")[2] in ("", "/", "/:memory:"):
            raise ValueError(
                f"{setting} names no file, so no other process could see it: give sqlite:////path/mlflow.db"
            )
        if not self.is_server and not self.artifact_location:
            raise ValueError(f"artifact_location is empty: a database ({setting}) needs a folder or a URL beside it")
        return scheme

    def _experiment_id(self, client: "MlflowClient", name: str) -> str:
        """Several cells may want a new experiment at once: whoever comes second uses the one of the first."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return client.create_experiment(name, artifact_location=self._artifact_root(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = client.get_experiment_by_name(name)
        if found is None:
            raise LookupError(f"experiment {name!r} was removed while it was looked up")
        if found.lifecycle_stage == "deleted":
            try:
                client.restore_experiment(found.experiment_id)
            except MlflowException:
                if client.get_experiment(found.experiment_id).lifecycle_stage == "deleted":
                    raise
        return found.experiment_id

    def _artifact_root(self, experiment: str) -> str | None:
        location = self.artifact_location
        if not location:
            return None
        # As a URI, since MLflow takes a `#` or `?` in a bare path for the end of it.
        root = location.rstrip("/") if "://" in location else Path(location).resolve().as_uri()
        return f"{root}/{quote(experiment, safe='')}"

    def _end(self, client: "MlflowClient", run_id: str, status: str) -> None:
        with self._reaching(f"closing run {run_id}"):
            client.set_terminated(run_id, status)

    @contextmanager
    def _reaching(self, doing: str) -> Iterator[None]:
        """Turn what goes wrong in MLflow, its database or its artefact store into TrackingUnavailable.

        Wrong arguments stay what they are: a mistake of the caller that waiting does not mend.
        """
        where = f"MLflow at {_shown(self.mlflow_tracking_uri)}"
        if (wait := self._down_until - time.monotonic()) > 0:
            raise TrackingUnavailable(f"{where} did not answer before; not asked again for {wait:.0f} s ({doing})")
        try:
            yield
        except TrackingUnavailable:
            raise
        except Exception as error:
            if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                raise
            self._down_until = time.monotonic() + RETRY_AFTER
            message = f"{where} is not usable ({doing}): {_shown(str(error)) or type(error).__name__}"
            raise TrackingUnavailable(message) from error


class CellRun:
    """The open MLflow run of one cell. Every method raises :class:`TrackingUnavailable` when MLflow is not there.

    Attributes:
        run_id: MLflow's id of the run, as `MlflowClient().get_run(run_id)` takes it.
        url: its page in the MLflow UI, or None where MLflow is a database without a server.
    """

    def __init__(self, tracking: Tracking, client: "MlflowClient", run_id: str, experiment_id: str) -> None:
        self._tracking = tracking
        self._client = client
        self._non_finite: set[str] = set()
        self._model: str | None = None
        self.run_id = run_id
        base = _without_user(tracking.mlflow_tracking_uri).rstrip("/")
        self.url = f"{base}/#/experiments/{experiment_id}/runs/{run_id}" if tracking.is_server else None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, in one request. NaN and infinity are left out and named in the tag `non_finite_metrics`."""
        self._log_points([(name, value, step or 0) for name, value in metrics.items()])

    def log_history(self, history: pd.DataFrame) -> None:
        """Record numbers that change while a model trains, in one request.

        Args:
            history: one row per epoch and one column per metric; the step is the column `epoch` where there is one,
                else the index.
        """
        indexed = history.set_index("epoch") if "epoch" in history else history
        self._log_points([(str(n), v, int(step)) for n in indexed for step, v in indexed[n].items()])  # type: ignore[arg-type]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, as text; text longer than MLflow stores (6,000 characters) ends with `...`."""
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        entries = [Param(name, _fitting(str(value), MAX_PARAM_VAL_LENGTH)) for name, value in params.items()]
        with self._tracking._reaching(f"logging parameters of run {self.run_id}"):
            self._client.log_batch(self.run_id, params=entries, synchronous=True)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags known only at the end, such as the data version of what the cell made."""
        from mlflow.entities import RunTag

        entries = [RunTag(name, value) for name, value in _fitting_tags(tags).items()]
        with self._tracking._reaching(f"logging tags of run {self.run_id}"):
            self._client.log_batch(self.run_id, tags=entries, synchronous=True)

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """Upload a file, or a folder under its own name, below the folder `artifact_path` of the run's artefacts."""
        if not path.exists():
            raise ValueError(f"there is no file {path} to log as an artefact")
        with self._tracking._reaching(f"uploading {path.name} to run {self.run_id}"):
            self._client.log_artifact(self.run_id, str(path), artifact_path)

    def log_text(self, name: str, content: str) -> None:
        """Upload text as the UTF-8 file `name`, e.g. `tables/transfer_matrix.csv`."""
        self.log_bytes(name, content.encode())

    def log_bytes(self, name: str, content: bytes) -> None:
        """Upload bytes as the file `name`, e.g. `plots/security_curves.png`."""
        target = PurePosixPath(name)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / target.name
            path.write_bytes(content)
            self.log_artifact(path, None if target.parent == PurePosixPath() else str(target.parent))

    def register_model(self, name: str, model_path: Path, tags: Mapping[str, str]) -> str:
        """Upload a trained model and make it a new version of a registered model. One model a run.

        Args:
            name: registered model, created where it is missing; see :func:`registered_name`.
            model_path: the `.keras` file. It is stored as it is, beside nothing that could name code to run.
            tags: of the version; its sha256 is added, and :meth:`Tracking.fetch_model` insists on it.

        Returns:
            The version.

        Raises:
            ValueError: not a `.keras` file, or the run has registered a model already.
        """
        from mlflow.exceptions import MlflowException

        if model_path.suffix != ".keras":
            raise ValueError(f"{model_path} is not a .keras file; no other format is registered")
        if self._model is not None:
            raise ValueError(f"run {self.run_id} has registered {self._model!r} already; open a run for {name!r}")
        digest = _sha256(model_path)
        self.log_artifact(model_path, MODEL_FOLDER)
        self._model = name
        with self._tracking._reaching(f"registering {name!r}"):
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{MODEL_FOLDER}"
            version = self._client.create_model_version(
                name, source, run_id=self.run_id, tags={**tags, DIGEST_TAG: digest}, await_creation_for=0
            )
        return str(version.version)

    def _log_points(self, points: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        finite = [Metric(n, float(value), now, step) for n, value, step in points if math.isfinite(value)]
        skipped = {n for n, value, _ in points if not math.isfinite(value)}
        self._non_finite |= skipped
        tags = [RunTag(NON_FINITE_TAG, ", ".join(sorted(self._non_finite)))] if skipped else []
        with self._tracking._reaching(f"logging metrics of run {self.run_id}"):
            self._client.log_batch(self.run_id, metrics=finite, tags=tags, synchronous=True)


def _open_client(uri: str) -> "MlflowClient":
    from mlflow.tracking import MlflowClient

    # Without registry_uri a process-wide setting of somebody else would decide where models are registered.
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _open_sqlite(uri: str) -> "MlflowClient":
    """Open a SQLite database, making it where it is missing.

    Processes that find a new database migrate it at the same time and fail on each other's columns. MLflow's own lock
    lies in the temporary folder, which containers and jobs do not share; ours lies beside the database.
    """
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - a second of imports that need no lock
    from filelock import FileLock
    from sqlalchemy import make_url

    path = Path(make_url(uri).database or "").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=MIGRATION_TIMEOUT):
        new = not path.exists()
        # Tried here, since MLflow retries for 100 s what cannot be opened at all.
        with closing(sqlite3.connect(path, timeout=PROBE_TIMEOUT)) as connection:
            # The run of one cell is nine commits, which cost half with a write-ahead log; readers do not block them.
            connection.execute("PRAGMA journal_mode=WAL" if new else "PRAGMA schema_version")
        return _open_client(uri)


def _require_answer(uri: str) -> None:
    """Raise within seconds unless an HTTP server answers; a wrong certificate or password is for MLflow to report."""
    import requests

    try:
        answer = requests.get(f"{_without_user(uri).rstrip('/')}/health", timeout=PROBE_TIMEOUT, allow_redirects=False)
    except requests.exceptions.SSLError:
        return
    if answer.status_code >= 500:
        raise ConnectionError(f"the server answers {answer.status_code} {answer.reason}")


def _require_port(uri: str, default_port: int) -> None:
    """Raise within seconds unless the database's host takes connections; MLflow would retry for 100 s."""
    from sqlalchemy import make_url

    url = make_url(uri)
    if url.host:
        socket.create_connection((url.host, url.port or default_port), timeout=PROBE_TIMEOUT).close()


def _without_user(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _shown(text: str) -> str:
    """Text for an error message, without the passwords of the URLs in it."""
    return re.sub(r"//[^/\s@]+@", "//***@", text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fitting(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _fitting_tags(tags: Mapping[str, str]) -> dict[str, str]:
    from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

    return {name: _fitting(str(value), MAX_TAG_VAL_LENGTH) for name, value in tags.items()}
