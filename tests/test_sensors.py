"""New registered models, from anyone's registration to a verdict, with a real MLflow on SQLite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import keras
import pandas as pd
import pytest

import dioptra_assets as da
from dioptra_assets.definitions import resource_definitions
from dioptra_assets.robustness.model_files import load_model
from dioptra_assets.sensors import JOB, NIGHTLY_JOB, NIGHTLY_OP, OP
from partitions.experiments import Watch
from tests.conftest import EXPERIMENT, Lab

WATCHED = {
    **EXPERIMENT,
    "attacks": {"fgm": {"eps": 0.3}, "weak": {"method": "fgm", "eps": 0.05}},
    "watch": {"name": "team_*", "tag": "candidate"},
    "gates": [{"rule": "robust_accuracy >= 0 for weak"}, {"rule": "robust_accuracy >= 1 for fgm", "severity": "warn"}],
}
ONE_ATTACK = {**WATCHED, "attacks": {"weak": EXPERIMENT["attacks"]["weak"]}, "gates": []}
BRANCH = "tiny/registered_model"


@pytest.fixture
def watching(lab: Lab) -> Lab:
    """The materialized experiment, whose file now also watches the registry."""
    lab.write(WATCHED)
    return lab


def register(lab: Lab, path: Path, name: str, tags: dict[str, str] | None = None) -> None:
    """Register a file as a stranger would: a run, an artefact and a version, none of them by this project."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{lab.home}/mlflow/mlflow.db")
    run = client.create_run("0")
    client.log_artifact(run.info.run_id, str(path), "data")
    if not [model for model in client.search_registered_models() if model.name == name]:
        client.create_registered_model(name)
    client.create_model_version(name, f"{run.info.artifact_uri}/data", run.info.run_id, tags=tags)


def model_file(lab: Lab, folder: Path, change: Callable[[Any], Any] = lambda model: model) -> Path:
    """The stored le_net as a file, changed."""
    path = folder / "model.keras"
    path.write_bytes(lab.find("model", architecture="le_net").read("model.keras"))
    change(load_model(path)).save(path)
    return path


def asked_for(lab: Lab) -> dict[str, dict[str, Any]]:
    """Run key -> run config of what the sensor asks for."""
    definitions = lab.defs()
    sensor = definitions.resolve_sensor_def("tiny_registered_models")
    with (
        lab.instance() as instance,
        dg.build_sensor_context(instance, definitions=definitions, resources=resource_definitions()) as context,
    ):
        data = sensor.evaluate_tick(context)
    return {str(request.run_key): dict(request.run_config) for request in data.run_requests or []}


def attack(lab: Lab, version: str) -> dg.ExecuteInProcessResult:
    config = {"ops": {OP: {"config": {"experiment": "tiny", "version": version}}}}
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with lab.instance() as instance:
        return (
            lab.defs()
            .resolve_job_def(JOB)
            .execute_in_process(run_config=config | quiet, instance=instance, raise_on_error=False)
        )


def reason(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data = failure.step_failure_data.user_failure_data
    assert data is not None, failure.step_failure_data.error
    return str(data.description)


def test_what_is_watched_is_asked_for_whoever_registered_it_and_nothing_else(watching: Lab, tmp_path: Path) -> None:
    path = model_file(watching, tmp_path)
    register(watching, path, "team_le_net", {"candidate": "yes"})
    register(watching, path, "team_le_net", {"reviewed": "yes"})
    register(watching, path, "other_le_net", {"candidate": "yes"})
    asked = asked_for(watching)
    assert set(asked) == {"tiny/team_le_net@1"}
    assert asked == asked_for(watching)
    assert asked["tiny/team_le_net@1"]["ops"][OP]["config"] == {"experiment": "tiny", "version": "team_le_net@1"}


def test_a_registered_model_is_attacked_and_gated_once(watching: Lab, tmp_path: Path) -> None:
    register(watching, model_file(watching, tmp_path), "team_le_net", {"candidate": "yes"})
    result = attack(watching, "team_le_net@1")
    assert result.success
    own = {"architecture": "team_le_net@1"}
    ours = watching.find("evasion_metrics", architecture="le_net", attack="weak")
    metrics = watching.find("registered_model/evasion_metrics", **own, attack="weak")
    from resources.tables import read_table

    theirs = read_table(metrics)
    assert list(theirs["target"]) == ["team_le_net@1"]
    same = read_table(ours)
    (expected,) = same[(same["target"] == "le_net")]["robust_accuracy"]
    assert theirs["robust_accuracy"].item() == pytest.approx(expected, abs=0.02)
    assert watching.find("registered_model/evasion_gate", **own, attack="fgm") is not None
    before = watching.bytes()
    assert attack(watching, "team_le_net@1").success
    assert watching.bytes() == before


def test_the_robustness_of_versions_is_followed_over_time(lab: Lab, tmp_path: Path) -> None:
    lab.write(ONE_ATTACK)
    with pytest.raises(LookupError, match="no registered model has been attacked"):
        da.versions("tiny")
    for _ in range(2):
        register(lab, model_file(lab, tmp_path), "team_le_net", {"candidate": "yes"})
    assert attack(lab, "team_le_net@2").success
    assert attack(lab, "team_le_net@1").success
    table = da.versions("tiny")
    assert list(zip(table["version"], table["attack"], strict=True)) == [(1, "weak"), (2, "weak")]
    dates = table.drop_duplicates("version")["registered"]
    assert dates.is_monotonic_increasing and dates.is_unique and (pd.Timestamp.now("UTC") - dates.iloc[0]).days == 0
    metrics = da.load("tiny/registered_model/evasion_metrics", architecture="team_le_net@2", attack="weak")
    assert table["robust_accuracy"].iloc[-1] == metrics["robust_accuracy"].item()
    # What the UI shows was computed again after the second of the two.
    stored = da.load("tiny/registered_model/versions")
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)
    (event, *_) = reversed(lab.events("registered_model/versions"))
    assert event.asset_materialization
    shown = event.asset_materialization.metadata["versions over time"]
    assert "data:image/png;base64" in str(shown.value)


def test_a_night_attacks_what_was_registered_and_fetches_no_model_twice(lab: Lab, tmp_path: Path) -> None:
    lab.write({**ONE_ATTACK, "schedule": "0 2 * * *"})
    register(lab, model_file(lab, tmp_path), "team_le_net", {"candidate": "yes"})
    config = {"ops": {NIGHTLY_OP: {"config": {"experiment": "tiny"}}}}
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    for _ in range(2):
        with lab.instance() as instance:
            job = lab.defs().resolve_job_def(NIGHTLY_JOB)
            assert job.execute_in_process(run_config=config | quiet, instance=instance).success
    assert list(da.versions("tiny")["attack"]) == ["weak"]
    for asset in ("model", "versions"):
        assert len(lab.events(f"registered_model/{asset}")) == 1


class Shouting(keras.layers.Layer):
    """A layer that is no built-in one."""

    def call(self, inputs: Any) -> Any:
        return inputs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: keras.Sequential([keras.Input((16, 16, 1)), Shouting(), m]), "Shouting"),
        (lambda m: keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]),
         "it takes images of (8, 8, 1), these are (16, 16, 1)"),
        (lambda m: keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Flatten(), keras.layers.Dense(7)]),
         "it gives (7,) numbers an image, there are 10 classes"),
        (lambda m: keras.Sequential([m, keras.layers.Softmax()]), "it gives probabilities: leave the softmax out"),
        (lambda m: keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Rescaling(1 / 255), m]),
         "put `keras.layers.Rescaling(255)` in front of it"),
    ],
    ids=["code", "size", "classes", "softmax", "range"],
)  # fmt: skip
def test_a_model_that_does_not_fit_fails_a_check_of_its_partition_that_says_why(
    watching: Lab, tmp_path: Path, change: Callable[[Any], Any], said: str
) -> None:
    register(watching, model_file(watching, tmp_path, change), "team_odd", {"candidate": ""})
    result = attack(watching, "team_odd@1")
    assert not result.success
    assert said in reason(result)
    assert watching.find("registered_model/model", architecture="team_odd@1") is None
    with watching.instance() as instance:
        records = instance.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION))
    failed = [
        (data.check_name, data.partition)
        for record in records
        if (event := record.event_log_entry.dagster_event) and not (data := event.asset_check_evaluation_data).passed
        if data.asset_key.path[1] == "registered_model"
    ]
    assert failed and all(partition == "team_odd@1" for _, partition in failed)


def test_a_file_that_is_no_keras_model_is_refused_by_name(watching: Lab, tmp_path: Path) -> None:
    pickle = tmp_path / "model.pkl"
    pickle.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    register(watching, pickle, "team_pickle", {"candidate": ""})
    assert "must hold one .keras file, found model.pkl" in reason(attack(watching, "team_pickle@1"))


@pytest.mark.parametrize(
    ("watch", "name", "tags", "takes"),
    [
        ({}, "anything", {}, True),
        ({"name": "a_*"}, "a_b", {}, True),
        ({"name": "a_*"}, "b_a_", {}, False),
        ({"tag": "candidate"}, "x", {"candidate": "no"}, True),
        ({"tag": "stage=review"}, "x", {"stage": "review"}, True),
        ({"tag": "stage=review"}, "x", {"stage": "done"}, False),
        ({"tag": "stage="}, "x", {"stage": ""}, True),
        ({"tag": "stage"}, "x", {}, False),
    ],
)
def test_what_a_watch_takes(watch: dict[str, str], name: str, tags: dict[str, str], takes: bool) -> None:
    assert Watch(**watch).takes(name, tags) is takes
