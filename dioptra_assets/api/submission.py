"""Submitting entry points from Python, and asking what became of them.

>>> import dioptra_assets as da
>>> job = da.submit_job("train", "-P model_architecture=le_net -P epochs=3")  # doctest: +SKIP
>>> da.submit_job("fgm", "-P model_architecture=le_net -P eps=0.3", depends_on=job.id).status  # doctest: +SKIP
'finished'
"""

import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from dioptra_assets.entry_points import demos
from dioptra_assets.entry_points.parsing import config_of, parse_kwargs, parse_parameters, unused
from dioptra_assets.runs.origin import LOCATION
from resources import settings
from resources.imports import loading
from resources.instance import home_instance
from resources.user import USER_HEADER, user_name, user_tags

if TYPE_CHECKING:
    from dagster import DagsterInstance

# Where Dagster's web server answers; without it jobs run in this process.
SERVER_VARIABLE = "DIOPTRA_ASSETS_SERVER"
# What a server that has a token wants to see of who launches.
TOKEN_VARIABLE = "DIOPTRA_ASSETS_UI_TOKEN"
Status = Literal["queued", "started", "finished", "failed"]
STATUSES: dict[str, Status] = {
    "SUCCESS": "finished",
    "FAILURE": "failed",
    "CANCELED": "failed",
    "STARTED": "started",
    "CANCELING": "started",
}
_RUN_QUERY = """
query Job($id: ID!) {
  runOrError(runId: $id) {
    __typename
    ... on Run { status tags { key value } }
  }
}
"""


@dataclass(frozen=True)
class Job:
    """A submitted entry point.

    Attributes:
        id: the Dagster run.
        entry_point: its name.
        status: queued, started, finished or failed.
        cell: path of the cell that it made, once known.
        mlflow_run_id: the MLflow run of that cell.
        error: why it failed.
        unused: one sentence per parameter that was accepted and has no effect; known only to whoever submitted it.
    """

    id: str
    entry_point: str
    status: Status
    cell: str = ""
    mlflow_run_id: str = ""
    error: str = ""
    unused: tuple[str, ...] = ()


def submit_job(entry_point: str, entry_point_kwargs: str = "", depends_on: str | Sequence[str] | None = None) -> Job:
    """Run an entry point on the server that `DIOPTRA_ASSETS_SERVER` names; if it names none, now and in this process.

    Args:
        entry_point: its name, e.g. `fgm`.
        entry_point_kwargs: its parameters as the demos write them, `-P eps=0.3 -P norm=2`.
        depends_on: ids of jobs that must have finished before.

    Returns:
        The job: queued on a server, or finished in this process.

    Raises:
        EntryPointError: for an unknown entry point, and unknown or ill-typed parameters, with what is allowed.
        ServerError: when the server refused the job or did not answer.
    """
    entry, parameters = demos.entry_point(entry_point), parse_kwargs(entry_point_kwargs)
    config_of(entry, parse_parameters(entry, parameters), model="model")
    waits = [depends_on] if isinstance(depends_on, str) else list(depends_on or ())
    config = {"entry_point": entry_point, "parameters": parameters, "depends_on": waits}
    server = _server()
    job = _submitted(server, entry_point, config) if server else _run_here(entry_point, config)
    return replace(job, unused=tuple(unused(entry, parameters)))


def get_job_by_id(job_id: str) -> Job:
    """What became of a job.

    Raises:
        LookupError: when there is no such job.
        ServerError: when the server did not answer.
    """
    server = _server()
    return _job(job_id, *(_asked(server, job_id) if server else _recorded(job_id)))


def _job(job_id: str, status: str, tags: dict[str, str]) -> Job:
    from dioptra_assets.entry_points.job import CELL_TAG, ENTRY_POINT_TAG, MLFLOW_RUN_TAG

    return Job(
        job_id,
        tags.get(ENTRY_POINT_TAG, ""),
        STATUSES.get(status, "queued"),
        tags.get(CELL_TAG, ""),
        tags.get(MLFLOW_RUN_TAG, ""),
    )


def _server() -> str | None:
    settings.read_env_file()
    return os.environ.get(SERVER_VARIABLE)


class ServerError(RuntimeError):
    """Dagster's web server refused a request, or did not answer."""


def _run_config(config: dict[str, Any]) -> dict[str, Any]:
    from dioptra_assets.entry_points.job import OP

    return {"ops": {OP: {"config": config}}}


def _run_here(entry_point: str, config: dict[str, Any]) -> Job:
    with loading():
        from dioptra_assets.definitions import defs
        from dioptra_assets.entry_points.job import ENTRY_POINT_TAG, JOB
        from dioptra_assets.runs.launch import QUIET, failure_reason, leading
        from dioptra_assets.runs.orphans import leader

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with warnings.catch_warnings(), home_instance() as instance, leading(instance):
        warnings.simplefilter("ignore")
        with loading():
            definitions = defs()
        result = definitions.resolve_job_def(JOB).execute_in_process(
            run_config={**_run_config(config), **QUIET},
            instance=instance,
            raise_on_error=False,
            tags={ENTRY_POINT_TAG: entry_point, **leader(), **user_tags(user_name())},
        )
        job = _job(result.run_id, *_recorded(result.run_id, instance))
    return job if result.success else replace(job, error=failure_reason(result))


def _recorded(job_id: str, instance: "DagsterInstance | None" = None) -> tuple[str, dict[str, str]]:
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        run = (instance or stack.enter_context(home_instance())).get_run_by_id(job_id)
    if run is None:
        raise LookupError(f"there is no job {job_id!r} in {settings.home()}")
    return run.status.value, dict(run.tags)


def _graphql(server: str) -> Any:
    from dagster_graphql import DagsterGraphQLClient

    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServerError(f"{SERVER_VARIABLE} is {server!r}: write http://HOST:PORT")
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}", USER_HEADER: user_name()} if token else None
    try:
        return DagsterGraphQLClient(
            parts.hostname, port_number=parts.port, use_https=parts.scheme == "https", headers=headers
        )
    except Exception as error:
        raise ServerError(f"Dagster's server {server} does not answer: {error}") from error


def _reason(error: Exception) -> str:
    """What the server said, without the query that Dagster's client puts before it."""
    said = getattr(error.__cause__, "errors", None)
    return "; ".join(str(mistake.get("message", mistake)) for mistake in said) if said else str(error)


def _submitted(server: str, entry_point: str, config: dict[str, Any]) -> Job:
    from dioptra_assets.entry_points.job import ENTRY_POINT_TAG, JOB

    try:
        job_id = _graphql(server).submit_job_execution(
            JOB,
            repository_location_name=LOCATION,
            run_config=_run_config(config),
            tags={ENTRY_POINT_TAG: entry_point},
        )
    except ServerError:
        raise
    except Exception as error:
        raise ServerError(f"Dagster's server {server} refused the job {entry_point}: {_reason(error)}") from error
    return Job(job_id, entry_point, "queued")


def _asked(server: str, job_id: str) -> tuple[str, dict[str, str]]:
    client = _graphql(server)
    try:
        answer = client._execute(_RUN_QUERY, {"id": job_id})["runOrError"]
    except Exception as error:
        raise ServerError(
            f"Dagster's server {server} did not say what became of job {job_id}: {_reason(error)}"
        ) from error
    if answer["__typename"] != "Run":
        raise LookupError(f"there is no job {job_id!r} on {server}")
    return answer["status"], {tag["key"]: tag["value"] for tag in answer["tags"]}
