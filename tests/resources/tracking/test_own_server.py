"""A user's own ops and assets log to the MLflow of this project."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from dioptra_assets.definitions import resource_definitions


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """dagster-mlflow sets the address for the whole process; other tests choose their own."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    mlflow.end_run()
    mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.mark.parametrize("good", [True, False])
def test_an_asset_of_a_user_logs_to_the_same_mlflow(
    good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    for name in ("MLFLOW_TRACKING_URI", "DIOPTRA_ASSETS_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    @dg.asset(required_resource_keys={"mlflow"})
    def leaderboard(context: dg.AssetExecutionContext) -> None:
        context.resources.mlflow.log_metric("best", 0.93)
        context.resources.mlflow.log_text("first", "leaders.txt")
        if not good:
            raise ValueError("no leader")

    resources = {"mlflow": resource_definitions()["mlflow"]}
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([leaderboard], resources=resources, instance=instance, raise_on_error=False)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("own")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"best": 0.93} and run.data.tags["dagster_run_id"] == result.run_id
    assert run.info.status == ("FINISHED" if good else "FAILED")
    assert [path.name for path in tmp_path.joinpath("mlflow", "artifacts").rglob("leaders.txt")] == ["leaders.txt"]
    assert not (tmp_path / "mlruns").exists()
