"""The code location of runs that a process leads itself: Dagster's timeline hides runs without one.

Why: docs/decisions/0038-runs-name-the-code-location.md
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster import DagsterInstance, JobDefinition

MODULE, LOCATION = "dioptra_assets.definitions", "dioptra_assets"


def location_of(module: str) -> str:
    """The name under which a code location is served, given the module that holds its definitions."""
    return LOCATION if module == MODULE else module


@contextmanager
def of_location(instance: "DagsterInstance", location: str) -> Iterator[None]:
    """Give runs created in the `with` block a code location, as Dagster's servers do.

    `execute_in_process` and `execute_job` create their run themselves and accept no origin for it.
    """
    from dioptra_assets.dagster_internals import (
        SINGLETON_REPOSITORY_NAME,
        RegisteredCodeLocationOrigin,
        RemoteRepositoryOrigin,
    )

    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), SINGLETON_REPOSITORY_NAME)

    def create(create_run: Any, job_def: "JobDefinition", **further: Any) -> Any:
        return create_run(job_def=job_def, **{"remote_job_origin": repository.get_job_origin(job_def.name), **further})

    created: Any = instance.create_run_for_job
    setattr(instance, "create_run_for_job", partial(create, created))  # noqa: B010 - a method, to a type checker
    try:
        yield
    finally:
        setattr(instance, "create_run_for_job", created)  # noqa: B010
