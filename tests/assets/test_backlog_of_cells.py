"""A cell made while MLflow was away is shown to be waiting, and MLflow is told of it when it is back."""

import dagster as dg
import pytest
from mlflow.tracking import MlflowClient

from dioptra_assets.runs.tell_mlflow import tell_mlflow
from resources import settings
from resources.tracking.resource import Tracking
from tests.conftest import Lab


def test_mlflow_that_was_away_is_told_of_a_cell_when_it_is_back(blank: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert blank.run("testing_set").success
    (made,) = blank.events("testing_set")
    assert made.asset_materialization
    assert "dioptra-assets mlflow-backlog" in str(made.asset_materialization.metadata["mlflow"].value)
    assert "mlflow_run_id" not in made.asset_materialization.metadata

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tracking = Tracking(mlflow_tracking_uri=settings.tracking_uri(), artifact_location=settings.artifact_location())
    said: list[str] = []
    with blank.instance() as instance:
        written = tell_mlflow(tracking, blank.store, instance, said.append)
        (observed,) = instance.fetch_observations(dg.AssetKey(["tiny", "testing_set"]), limit=5).records
        again = tell_mlflow(tracking, blank.store, instance, said.append)
    ((tags, run_id, _),) = written.runs
    assert (tags["asset"], again.runs) == ("tiny/testing_set", [])
    assert said == ["1 cells that were waiting were logged to MLflow"]
    assert observed.asset_observation
    assert observed.asset_observation.metadata["mlflow_run_id"].value == run_id
    data = MlflowClient(tracking.mlflow_tracking_uri).get_run(run_id).data
    assert data.metrics["n"] == 180
    assert data.tags["asset"] == "tiny/testing_set"
    assert blank.statuses()["tiny/testing_set"] == "FRESH"
