"""The code location: every experiment below `defs/`, and the resources their assets use."""

from pathlib import Path
from typing import Any

import dagster as dg

from dioptra_assets.assets.boundary import IO_MANAGER
from dioptra_assets.assets.io_manager import StoredCells
from dioptra_assets.automation.jobs import nightly_job
from dioptra_assets.entry_points.job import entry_point_job
from dioptra_assets.experiment_loader import load_experiments, mistakes_in
from dioptra_assets.runs.launch import UnknownExperimentError
from partitions.experiment_files import read_attributes
from partitions.experiments import ExperimentSpec, parse_experiment
from resources import settings
from resources.executors.choice import executor
from resources.redacted import without_passwords
from resources.store import StoreResource
from resources.tracking.own_server import own_mlflow
from resources.tracking.resource import Tracking


def resource_definitions() -> dict[
    str, dg.ConfigurableResource[Any] | dg.ConfigurableIOManager | dg.ResourceDefinition
]:
    """The store and MLflow, where the settings say they are; `mlflow` is for the ops and assets of users."""
    return {
        "mlflow": own_mlflow,
        "store": StoreResource(url=settings.store_url()),
        IO_MANAGER: StoredCells(url=settings.store_url()),
        "tracking": Tracking(
            mlflow_tracking_uri=_shown(settings.tracking_uri()), artifact_location=settings.artifact_location()
        ),
    }


def _shown(uri: str) -> str:
    """A tracking URI as the UI may show it among the settings of the resource: one with a password by its variable."""
    return uri if without_passwords(uri) == uri else dg.EnvVar("MLFLOW_TRACKING_URI")


def code_location(package: Path) -> dg.Definitions:
    """The experiments below the folder `defs` of a project's package, with what they need to run.

    By default steps of a run share one process, so a backfill of many cells imports TensorFlow once.

    Raises:
        ExperimentError: within `dg check defs` alone; else an experiment that is wrong is shown as such.
    """
    settings.read_env_file()
    experiments = load_experiments(package)
    own = dg.Definitions(resources=resource_definitions(), executor=executor())
    module = f"{package.name}.definitions"  # where workers find what stands here
    jobs = [
        entry_point_job(lambda: complete, module),
        nightly_job(lambda: complete, lambda name: experiment_spec(name, package), module),
    ]
    complete = dg.Definitions.merge(experiments, own, dg.Definitions(jobs=jobs))
    return complete


def experiment_spec(name: str, package: Path = Path(__file__).parent) -> ExperimentSpec:
    """What the file of an experiment declares.

    Raises:
        UnknownExperimentError: when there is no such experiment.
        ExperimentError: a sentence for each mistake in the file.
    """
    path = package / "defs" / name / "defs.yaml"
    if not path.is_file():
        known = sorted(folder.parent.name for folder in path.parent.parent.glob("*/defs.yaml"))
        raise UnknownExperimentError(f"there is no experiment {name!r}, available: {', '.join(known)}")
    return parse_experiment(name, read_attributes(path), str(path.parent.resolve()))


def mistakes(name: str | None = None, package: Path = Path(__file__).parent) -> dict[str, str]:
    """Name of each experiment that cannot be loaded -> what is wrong with its file; of all, or of one.

    Raises:
        UnknownExperimentError: when there is no such experiment.
    """
    found = mistakes_in(package)
    if name is None:
        return found
    if name not in found:
        experiment_spec(name, package)
    return {one: sentence for one, sentence in found.items() if one == name}


@dg.definitions
def defs() -> dg.Definitions:
    """All experiments."""
    return code_location(Path(__file__).parent)
