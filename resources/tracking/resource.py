"""Tracking: one MLflow run for each materialized cell, and the registry of trained models.

Everything goes through `MlflowClient`: MLflow's global active run belongs to whoever uses MLflow in the same process
and is never read or changed, and MLflow loads no artefact, so nothing that a registry holds is ever executed. A server
that is down costs seconds: :class:`TrackingUnavailable` is raised, and what to do then is the caller's choice.

Why: docs/decisions/0010-mlflow-through-its-client.md
"""

import os
import re
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

import dagster as dg
from pydantic import Field, PrivateAttr

from resources import settings
from resources.redacted import as_cause, without_passwords
from resources.tracking.client import (
    DATABASE_PORTS,
    ENVIRONMENT_DEFAULTS,
    SLOWEST_TRANSFER,
    call_deadline,
    file_sha256,
    fitting_tags,
    open_client,
    open_sqlite,
    require_answer,
    require_port,
    transferring,
    with_deadline,
    without_user,
)
from resources.tracking.deadlines import within
from resources.tracking.run import DIGEST_TAG, MODEL_FOLDER, CellRun

if TYPE_CHECKING:
    from mlflow.entities import FileInfo, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

# After a failure this process asks MLflow only now and then, each time after twice the pause, so that the cells of a
# backfill do not wait for its timeouts one after the other.
RETRY_AFTER = 30.0
RETRY_AT_MOST = 120.0
CONNECTING = "connecting"
# How MLflow refuses a run in an experiment that is not there, or in its bin.
_NO_EXPERIMENT = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}
MOST_FILES = 1000  # of a registered version, looked through for its model


class TrackingUnavailable(RuntimeError):  # noqa: N818 - a state of the world, not a mistake
    """MLflow cannot be reached or cannot store anything now. Nothing but the tracking of a cell is lost."""


class ModelRefused(ValueError):  # noqa: N818 - named for what happened to the model
    """A registered model is not, byte for byte, the file that was registered."""


def registered_name(experiment: str, tag: str, architecture: str) -> str:
    """The name of a model in the registry: `{experiment}_{tag}_{architecture}`, without the tag when it is empty."""
    return "_".join(part for part in (experiment, tag, architecture) if part)


@dataclass
class _Outage:
    until: float
    pause: float


_outages: dict[str, _Outage] = {}  # by tracking URI


class Tracking(dg.ConfigurableResource[Any]):
    """Where MLflow keeps runs and registered models.

    The settings are named as in dagster-mlflow's `mlflow_tracking` where they mean the same.

    Example:
        >>> tracking = Tracking(mlflow_tracking_uri="http://127.0.0.1:5000")
        >>> with tracking.run("digits", "model le_net", tags={}, params={"epochs": 3}) as run:  # doctest: +SKIP
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
    # Experiments that runs were opened in. One that is thrown away meanwhile is noticed when the next is refused.
    _experiments: dict[str, str] = PrivateAttr(default_factory=dict)

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

    def require_experiment(self, name: str) -> str:
        """The id of an MLflow experiment, created (or restored from MLflow's bin) when it is not there.

        Raises:
            TrackingUnavailable: MLflow cannot be reached.
        """
        client = self._connect()
        with self.reaching(f"opening experiment {name!r}"):
            return self._experiment_id(client, name)

    @contextmanager
    def run(
        self, experiment: str, name: str, *, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> Generator["CellRun"]:
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
        cell_run = self.open_run(experiment, name, tags=tags)
        try:
            cell_run.log_params(params)
            yield cell_run
        except BaseException as error:
            try:
                self.end_run(cell_run.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
            except TrackingUnavailable as unavailable:
                error.add_note(f"MLflow run {cell_run.run_id} was left open: {unavailable}")
            raise
        self.end_run(cell_run.run_id, "FINISHED")

    def open_run(self, experiment: str, name: str, *, tags: Mapping[str, str], start: int | None = None) -> "CellRun":
        """Open an MLflow run that the caller ends with :meth:`end_run`; `start` in ms since 1970, by default now.

        Raises:
            TrackingUnavailable: MLflow cannot be reached.
        """
        client = self._connect()
        from_environment = {key: os.environ[key] for key in self.env_to_tag if key in os.environ}
        all_tags = fitting_tags({**self.extra_tags, **from_environment, **tags})
        with self.reaching(f"opening a run of experiment {experiment!r}"):
            created = self._created_run(client, experiment, start_time=start, run_name=name, tags=all_tags)
        return self._cell_run(client, created.info.run_id, created.info.experiment_id)

    def _created_run(self, client: "MlflowClient", experiment: str, **arguments: Any) -> "Run":
        """A new run; its experiment is looked up for the first, and where MLflow does not take another in it."""
        from mlflow.exceptions import MlflowException

        if known := self._experiments.get(experiment):
            try:
                return client.create_run(known, **arguments)
            except MlflowException as error:
                if error.error_code not in _NO_EXPERIMENT:
                    raise
        self._experiments[experiment] = experiment_id = self._experiment_id(client, experiment)
        return client.create_run(experiment_id, **arguments)

    def known_run(self, run_id: str) -> "CellRun":
        """A run that is there already, to log more to it.

        Raises:
            TrackingUnavailable: MLflow cannot be reached.
        """
        client = self._connect()
        with self.reaching(f"looking up run {run_id}"):
            return self._cell_run(client, run_id, client.get_run(run_id).info.experiment_id)

    def _cell_run(self, client: "MlflowClient", run_id: str, experiment_id: str) -> CellRun:
        base = without_user(self.mlflow_tracking_uri).rstrip("/")
        url = f"{base}/#/experiments/{experiment_id}/runs/{run_id}" if self.is_server else None
        return CellRun(self.reaching, client, run_id, experiment_id, url)

    def tagged_run(self, experiment: str, tag: str, value: str) -> str:
        """The id of the run of an experiment that has a tag of this value, empty where none has.

        Raises:
            TrackingUnavailable: MLflow cannot be reached.
        """
        client = self._connect()
        with self.reaching(f"looking for a run of experiment {experiment!r}"):
            known = client.get_experiment_by_name(experiment)
            runs: list[Run] = client.search_runs([known.experiment_id], f"tags.`{tag}` = '{value}'") if known else []
            return str(runs[0].info.run_id) if runs else ""

    def has_version_of(self, name: str, run_id: str) -> bool:
        """Whether a registered model has a version that this run made.

        Raises:
            TrackingUnavailable: MLflow cannot be reached.
        """
        client = self._connect()
        with self.reaching(f"looking up the registered model {name!r}"):
            return any(version.run_id == run_id for version in client.search_model_versions(f"name = '{name}'"))

    def end_run(self, run_id: str, status: str, end: int | None = None) -> None:
        """End a run: FINISHED, FAILED or KILLED; `end` in ms since 1970, by default now.

        Raises:
            TrackingUnavailable: MLflow cannot be reached.
        """
        client = self._client or self._connect()
        with self.reaching(f"closing run {run_id}"):
            client.set_terminated(run_id, status, end)

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
            LookupError: the version does not exist.
            ModelRefused: it was not registered by :meth:`CellRun.register_model`, or was altered since.
            TrackingUnavailable: MLflow cannot be reached.
        """
        from mlflow.exceptions import MlflowException

        client = self._connect()
        what = f"version {version} of the registered model {name!r}"
        with self.reaching(f"looking up {what}"):
            try:
                found = client.get_model_version(name, str(version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                found = None
        if found is None:
            raise LookupError(f"MLflow at {without_passwords(self.mlflow_tracking_uri)} has no {what}")
        expected = found.tags.get(DIGEST_TAG, "")
        if not found.run_id or not re.fullmatch("[0-9a-f]{64}", expected):
            raise ModelRefused(f"{what} has no run or no tag {DIGEST_TAG!r}: it was not registered by this testbed")
        with self.reaching(f"downloading {what}"):
            files: list[FileInfo] = cast("Any", client).list_artifacts(found.run_id, MODEL_FOLDER)
        paths = [file.path for file in files]
        if len(files) != 1 or files[0].is_dir or not re.fullmatch(rf"{MODEL_FOLDER}/[^/\\]+\.keras", paths[0]):
            raise ModelRefused(f"{what} must be one .keras file in {MODEL_FOLDER}/, found {paths or 'nothing'}")
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".fetch-") as scratch:
            with self.reaching(f"downloading {what}"):
                size = files[0].file_size or 0
                downloaded = Path(transferring(client, size).download_artifacts(found.run_id, paths[0], scratch))
            actual = file_sha256(downloaded)
            if actual != expected:
                raise ModelRefused(f"{what}: sha256 of {paths[0]} is {actual}, registered was {expected}")
            return downloaded.replace(into / f"{name}@{version}.keras")

    def fetch_any_model(self, name: str, version: str | int, into: Path) -> Path:
        """Download the one model file of a registered version, whoever registered it.

        What :meth:`CellRun.register_model` registered is held to its digest. Of anything else the artefacts are listed
        and the one `.keras` file among them is copied: an MLmodel file, a pickle or code beside it is never opened.

        Args:
            name: registered model.
            version: its version.
            into: folder for the file, made where it is missing.

        Returns:
            `into/NAME@VERSION.keras`; nothing has looked into it yet.

        Raises:
            LookupError: the version does not exist, or has no file yet.
            ModelRefused: it holds no `.keras` file or several, or was altered since it was registered here.
            TrackingUnavailable: MLflow cannot be reached.
        """
        from mlflow.artifacts import download_artifacts, list_artifacts

        client = self._connect()
        what = f"version {version} of the registered model {name!r}"
        if DIGEST_TAG in self.registered_model_tags(name, int(version)):
            return self.fetch_model(name, version, into)
        with self.reaching(f"listing the files of {what}"):
            root = client.get_model_version_download_uri(name, str(version))
            folders, files = [""], dict[str, int]()
            while folders and len(files) < MOST_FILES:
                folder = folders.pop()
                listed: list[FileInfo] = within(
                    call_deadline(),
                    list_artifacts,
                    artifact_uri=f"{root.rstrip('/')}/{folder}",
                    tracking_uri=self.mlflow_tracking_uri,
                )
                folders += [file.path for file in listed if file.is_dir]
                files |= {file.path: file.file_size or 0 for file in listed if not file.is_dir}
        if not files:
            raise LookupError(f"{what} holds no file, or none yet")
        models = [path for path in files if path.endswith(".keras")]
        if len(models) != 1:
            held = ", ".join(sorted(models or files)[:10]) or "nothing"
            raise ModelRefused(
                f"{what} must hold one .keras file, found {held}: register that file, or mlflow.keras.log_model"
            )
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".fetch-") as scratch:
            with self.reaching(f"downloading {what}"):
                path = within(
                    call_deadline() + files[models[0]] / SLOWEST_TRANSFER,
                    download_artifacts,
                    artifact_uri=f"{root.rstrip('/')}/{models[0]}",
                    dst_path=scratch,
                    tracking_uri=self.mlflow_tracking_uri,
                )
            return Path(path).replace(into / f"{name}@{version}.keras")

    def registered_versions(self) -> list["ModelVersion"]:
        """Every version of every registered model, the oldest first.

        Raises:
            TrackingUnavailable: MLflow does not answer.
        """
        client = self._connect()
        found: list[ModelVersion] = []
        token: str | None = None
        with self.reaching("listing the registered models"):
            while True:
                page: Any = client.search_model_versions(max_results=1000, page_token=token)
                found += page
                token = page.token
                if not token:
                    break
        return sorted(found, key=lambda version: (version.creation_timestamp, version.name, int(version.version)))

    def registered_version(self, name: str, version: str | int) -> "ModelVersion":
        """One version of a registered model.

        Raises:
            LookupError: the version does not exist.
            TrackingUnavailable: MLflow does not answer.
        """
        from mlflow.exceptions import MlflowException

        client = self._connect()
        what = f"version {version} of the registered model {name!r}"
        with self.reaching(f"looking up {what}"):
            try:
                return client.get_model_version(name, str(version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        raise LookupError(f"MLflow at {without_passwords(self.mlflow_tracking_uri)} has no {what}")

    def aliases(self) -> dict[tuple[str, str], list[str]]:
        """Name and version -> the aliases that name it, of every registered model that has any.

        Raises:
            TrackingUnavailable: MLflow does not answer.
        """
        client = self._connect()
        found: dict[tuple[str, str], list[str]] = {}
        token: str | None = None
        with self.reaching("listing the aliases of registered models"):
            while True:
                page: Any = client.search_registered_models(max_results=1000, page_token=token)
                for model in page:
                    named: dict[str, str] = model.aliases or {}
                    for alias, version in named.items():
                        found.setdefault((model.name, str(version)), []).append(alias)
                token = page.token
                if not token:
                    return found

    def model_page(self, name: str, version: str | int) -> str:
        """Where MLflow shows a version."""
        base = without_user(self.mlflow_tracking_uri) if self.is_server else settings.mlflow_ui()
        return f"{base.rstrip('/')}/#/models/{quote(name, safe='')}/versions/{version}"

    def mark_version(self, version: "ModelVersion", tags: Mapping[str, str | None], description: str) -> None:
        """Set tags of a registered version, take away those that are None, and set its description.

        What stands there already is not written again.

        Raises:
            TrackingUnavailable: MLflow does not answer.
        """
        client = self._connect()
        name, number = version.name, str(version.version)
        with self.reaching(f"writing to version {number} of the registered model {name!r}"):
            for tag, value in tags.items():
                if value is None and tag in version.tags:
                    client.delete_model_version_tag(name, number, tag)
                elif value is not None and version.tags.get(tag) != (short := fitting_tags({tag: value})[tag]):
                    client.set_model_version_tag(name, number, tag, short)
            if (version.description or "") != description:
                client.update_model_version(name, number, description)

    def run_tags(self, run_id: str) -> dict[str, str]:
        """The tags of an MLflow run.

        Raises:
            LookupError: when the run does not exist.
            TrackingUnavailable: when MLflow does not answer.
        """
        from mlflow.exceptions import MlflowException

        client = self._connect()
        with self.reaching(f"looking up run {run_id!r}"):
            try:
                return dict(client.get_run(run_id).data.tags)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        raise LookupError(f"MLflow at {without_passwords(self.mlflow_tracking_uri)} has no run {run_id!r}")

    def registered_model_tags(self, name: str, version: int | None) -> dict[str, str]:
        """The tags of a version of a registered model; None is the newest.

        Raises:
            LookupError: when the model or version does not exist.
            TrackingUnavailable: when MLflow does not answer.
        """
        client = self._connect()
        with self.reaching(f"looking up the registered model {name!r}"):
            known: list[ModelVersion] = [] if "'" in name else client.search_model_versions(f"name = '{name}'")
        by_number = {int(each.version): each for each in known}
        number = max(by_number, default=None) if version is None else version
        if number is None or number not in by_number:
            available = ", ".join(map(str, sorted(by_number))) or "none"
            raise LookupError(
                f"there is no version {version or 'at all'} of the registered model {name!r}, available: {available}"
            )
        return dict(by_number[number].tags)

    def client(self) -> "MlflowClient":
        """MLflow's own client, connected.

        Raises:
            TrackingUnavailable: when MLflow is not there.
        """
        return self._connect()

    def version_of_alias(self, name: str, alias: str) -> str:
        """The version of a registered model that an alias names.

        Raises:
            LookupError: when it names none, or MLflow does not answer.
        """
        from mlflow.exceptions import MlflowException

        try:
            client = self._connect()
            with self.reaching(f"looking up the alias {alias!r} of the registered model {name!r}"):
                try:
                    return str(client.get_model_version_by_alias(name, alias).version)
                except MlflowException as error:
                    if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                        raise
        except TrackingUnavailable as error:
            raise LookupError(f"which version of {name} is @{alias} is not known: {error}") from error
        raise LookupError(f"no version of {name} has the alias {alias!r}: set it in the registry")

    def _connect(self) -> "MlflowClient":
        uri = self.mlflow_tracking_uri
        scheme = self._checked_scheme()
        with self.reaching(CONNECTING):
            if self.is_server:
                require_answer(uri)
            if self._client is None:
                os.environ.update(self.env)
                for variable, value in ENVIRONMENT_DEFAULTS.items():
                    os.environ.setdefault(variable, value)
                if self.artifact_location and "://" not in self.artifact_location:
                    Path(self.artifact_location).mkdir(parents=True, exist_ok=True)
                if scheme in DATABASE_PORTS:
                    require_port(uri, DATABASE_PORTS[scheme])
                self._client = open_sqlite(uri) if scheme == "sqlite" else with_deadline(open_client(uri))
        return self._client

    def _checked_scheme(self) -> str:
        scheme = urlsplit(self.mlflow_tracking_uri).scheme.partition("+")[0]
        setting = f"mlflow_tracking_uri {without_passwords(self.mlflow_tracking_uri)!r}"
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
        """Several cells may need a new experiment at once: the second uses the one that the first created."""
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

    @contextmanager
    def reaching(self, doing: str) -> Generator[None]:
        """Turn errors of MLflow, its database or its artefact store into TrackingUnavailable.

        Errors about wrong arguments are raised as they are: waiting does not help a mistake of the caller.
        """
        where = f"MLflow at {without_passwords(self.mlflow_tracking_uri)}"
        outage = _outages.get(self.mlflow_tracking_uri)
        if outage and (wait := outage.until - time.monotonic()) > 0:
            raise TrackingUnavailable(f"{where} did not answer before; not asked again for {wait:.0f} s ({doing})")
        try:
            yield
        except TrackingUnavailable:
            raise
        except Exception as error:
            if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                raise
            pause = min(2 * outage.pause, RETRY_AT_MOST) if outage else RETRY_AFTER
            _outages[self.mlflow_tracking_uri] = _Outage(time.monotonic() + pause, pause)
            message = f"{where} is not usable ({doing}): {without_passwords(str(error)) or type(error).__name__}"
            raise TrackingUnavailable(message) from as_cause(error)
        if outage and doing != CONNECTING:
            _outages.pop(self.mlflow_tracking_uri, None)

    def ask_again(self) -> None:
        """Ask MLflow again the next time, however often it failed: a person says that it is back."""
        _outages.pop(self.mlflow_tracking_uri, None)


def tracking_of(resources: Mapping[str, Any]) -> Tracking:
    """The resource `tracking` of a code location outside of a run, settings that name a variable taken from there."""
    tracking = resources["tracking"]
    assert isinstance(tracking, Tracking)
    return tracking.process_config_and_initialize()
