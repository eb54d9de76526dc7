"""The code location: every experiment below `defs/`, and the resources their assets use."""

from pathlib import Path

import dagster as dg

from resources import home
from resources.store import StoreResource
from resources.tracking import Tracking


def resource_definitions() -> dict[str, dg.ConfigurableResource]:
    """The store and MLflow, where the settings say they are."""
    return {
        "store": StoreResource(url=home.store_url()),
        "tracking": Tracking(mlflow_tracking_uri=home.tracking_uri(), artifact_location=home.artifact_location()),
    }


@dg.definitions
def defs() -> dg.Definitions:
    """All experiments. Steps of a run share one process, so a backfill of many cells imports TensorFlow once."""
    experiments = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(
        experiments, dg.Definitions(resources=resource_definitions(), executor=dg.in_process_executor)
    )
