"""Opening MLflow: a dead server does not hold up a cell, and a new database is made only once."""

import hashlib
import os
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit, urlunsplit

from resources.imports import loading
from resources.tracking.deadlines import Deadlined, within

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PROBE_TIMEOUT = 5.0
CALL_DEADLINE = 10.0  # of one call, even if data keeps trickling in; twice MLFLOW_HTTP_REQUEST_TIMEOUT if that is more
SLOWEST_TRANSFER = 10**6  # bytes a second that an upload or download may take
MIGRATION_TIMEOUT = 120.0

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


def with_deadline(client: "MlflowClient") -> "MlflowClient":
    """A client whose calls have a deadline. For servers: a SQLite file waits only for its own lock."""
    return cast("MlflowClient", Deadlined(client, call_deadline()))


def call_deadline() -> float:
    """How long one call may take, in seconds."""
    return max(CALL_DEADLINE, 2 * float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or 0))


def transferring(client: "MlflowClient", size: int) -> "MlflowClient":
    """The client with the deadline of an upload or download of so many bytes."""
    if not isinstance(client, Deadlined):
        return client
    return cast("MlflowClient", client.given(call_deadline() + size / SLOWEST_TRANSFER))


def open_client(uri: str) -> "MlflowClient":
    """A client of one server or database."""
    with loading():
        from mlflow.tracking import MlflowClient

    # Without registry_uri a process-wide setting of somebody else would decide where models are registered.
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def open_sqlite(uri: str) -> "MlflowClient":
    """Open a SQLite database, making it where it is missing.

    Processes that find a new database migrate it at the same time and fail on each other's columns. MLflow's own lock
    lies in the temporary folder, which containers and jobs do not share; ours lies beside the database.
    """
    with loading():
        import_module("mlflow.store.tracking.sqlalchemy_store")  # a second of imports that need no lock
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
        return open_client(uri)


def require_answer(uri: str) -> None:
    """Raise within seconds unless an HTTP server answers; a wrong certificate or password is for MLflow to report."""
    import requests

    address = f"{without_user(uri).rstrip('/')}/health"
    try:
        answer = within(PROBE_TIMEOUT, requests.get, address, timeout=PROBE_TIMEOUT, allow_redirects=False)
    except requests.exceptions.SSLError:
        return
    if answer.status_code >= 500:
        raise ConnectionError(f"the server answers {answer.status_code} {answer.reason}")


def require_port(uri: str, default_port: int) -> None:
    """Raise within seconds unless the database's host takes connections; MLflow would retry for 100 s."""
    from sqlalchemy import make_url

    url = make_url(uri)
    if url.host:
        socket.create_connection((url.host, url.port or default_port), timeout=PROBE_TIMEOUT).close()


def without_user(uri: str) -> str:
    """A URL without user and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fitting(text: str, longest: int) -> str:
    """Text that is cut to what MLflow stores, with `...` at its end."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def fitting_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags whose values are cut to what MLflow stores."""
    from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

    return {name: fitting(str(value), MAX_TAG_VAL_LENGTH) for name, value in tags.items()}
