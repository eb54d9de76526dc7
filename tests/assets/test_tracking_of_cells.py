"""MLflow has one run for each cell, and the closing lines of the demos work on it as they are written."""

import tarfile
from pathlib import Path
from typing import Any

import pytest

import dioptra_assets as da
from tests.assets.test_boundary import assets, cell_path
from tests.conftest import ARCHITECTURES, ATTACKS, Lab

# Configs are no computation, so they have no run.
CONFIGS = {"architecture_config", "attack_config"}


@pytest.fixture
def client(looking: Lab, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client as a user makes it: it knows the environment variable alone."""
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", da.tracking_uri())
    return MlflowClient()


def run_ids(lab: Lab, asset: str) -> dict[str, str]:
    """Path of each cell -> the MLflow run that its materialization links to."""
    found = {}
    for entry in lab.events(asset):
        assert entry.asset_materialization
        metadata = entry.asset_materialization.metadata
        if "mlflow_run_id" in metadata:
            found[cell_path(entry)] = str(metadata["mlflow_run_id"].value)
            assert found[cell_path(entry)] in str(metadata["mlflow_run"].value)
    return found


def test_every_computed_cell_has_one_finished_run(looking: Lab, client: Any) -> None:
    linked = {path: run for asset in assets(looking) for path, run in run_ids(looking, asset).items()}
    untracked = {*CONFIGS, "model_sanity"}
    expected = {cell.path for cell in looking.store.cells("tiny") if cell.asset.split("/")[1] not in untracked}
    assert set(linked) == expected
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], max_results=1000)
    assert sorted(run.info.run_id for run in runs) == sorted(linked.values())
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_run_has_the_metrics_params_and_tags_of_its_cell(looking: Lab, client: Any) -> None:
    run_id = run_ids(looking, "evasion_metrics")["tiny/evasion_metrics/le_net/fgm_0.3"]
    attack_run_id = run_ids(looking, "adversarial_set")["tiny/adversarial_set/le_net/fgm_0.3"]

    metrics_run_le_net = client.get_run(run_id)
    fgm_run_le_net = client.get_run(attack_run_id)

    table = da.load("tiny/evasion_metrics", architecture="le_net", attack="fgm_0.3").set_index("target")
    assert metrics_run_le_net.data.metrics["robust_accuracy"] == table.loc["le_net", "robust_accuracy"]
    assert metrics_run_le_net.data.metrics["shallow_net/asr"] == pytest.approx(table.loc["shallow_net", "asr"])
    assert metrics_run_le_net.data.metrics["n"] == 180
    params = fgm_run_le_net.data.params
    assert params.items() >= {"method": "fgm", "eps": "0.3", "norm": "inf", "minimal": "False"}.items()
    assert params.items() >= {"architecture": "le_net", "attack": "fgm_0.3"}.items()
    tags = fgm_run_le_net.data.tags
    expected = {
        "asset": "tiny/adversarial_set",
        "partition": "le_net|fgm_0.3",
        "architecture": "le_net",
        "attack": "fgm_0.3",
        "dagster_run_id": looking.events("adversarial_set")[0].run_id,
        "seed": str(
            looking.find("adversarial_set", architecture="le_net", attack="fgm_0.3").manifest.attributes["seed"]
        ),
    }
    assert tags.items() >= expected.items()
    assert tags["device"]
    assert fgm_run_le_net.data.metrics["largest change of a pixel"] == pytest.approx(0.3, abs=1e-6)


def test_training_has_a_point_for_each_epoch(looking: Lab, client: Any) -> None:
    run_id = run_ids(looking, "model")["tiny/model/shallow_net"]
    points = client.get_metric_history(run_id, "val_loss")
    assert sorted({point.step for point in points}) == [1, 2, 3]
    assert client.get_run(run_id).data.params["epochs"] == "3.0"


def test_models_are_registered_under_experiment_tag_and_architecture(looking: Lab, client: Any) -> None:
    assert sorted(model.name for model in client.search_registered_models()) == [
        "tiny_shallow_net",
        "tiny_small_le_net",
    ]
    version = client.get_model_version("tiny_small_le_net", "1")
    assert version.run_id == run_ids(looking, "model")["tiny/model/le_net"]
    assert version.tags["asset"] == "tiny/model"
    assert version.tags["architecture"] == "le_net"


def test_adversarial_sets_are_logged_as_archives_where_the_experiment_asks_for_it(
    looking: Lab, client: Any, tmp_path: Path
) -> None:
    linked = run_ids(looking, "adversarial_set")
    assert len(linked) == len(ARCHITECTURES) * len(ATTACKS)
    for run_id in linked.values():
        assert [file.path for file in client.list_artifacts(run_id)] == ["testing_adversarial_fgm.tar.gz"]
    archive = client.download_artifacts(
        linked["tiny/adversarial_set/le_net/weak"], "testing_adversarial_fgm.tar.gz", str(tmp_path)
    )
    with tarfile.open(archive) as tar:
        assert len([name for name in tar.getnames() if name.endswith(".png")]) == 180


def test_the_report_lies_on_its_run(looking: Lab, client: Any, tmp_path: Path) -> None:
    run_id = run_ids(looking, "report")["tiny/report"]
    page = Path(client.download_artifacts(run_id, "report.html", str(tmp_path))).read_text()
    assert page == da.load("tiny/report").html
