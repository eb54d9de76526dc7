"""Dagster's instance of the home."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from resources.settings import home, instance_settings

if TYPE_CHECKING:
    from dagster import DagsterInstance


@contextmanager
def home_instance() -> "Generator[DagsterInstance]":
    """Dagster's instance of the home, whatever `DAGSTER_HOME` says elsewhere; the environment stays as it is.

    A home without a `dagster.yaml` gets the project's, so that every way to run cells finds the same settings there.
    """
    from dagster import DagsterInstance

    from dioptra_assets.dagster_internals import InstanceRef
    from resources.sqlite import with_kept_connections

    folder, settings = home(), instance_settings()
    folder.mkdir(parents=True, exist_ok=True)
    if settings and not (folder / "dagster.yaml").exists():
        shutil.copy(settings, folder)
    with DagsterInstance.from_ref(with_kept_connections(InstanceRef.from_dir(str(folder)), str(folder))) as opened:
        yield opened
