"""The cell boundary: what is stored and what Dagster is told of it, cell by cell, also where some fail."""

import re
import time
from collections import Counter
from typing import Any

import dagster as dg
import numpy as np
import pytest

from dioptra_assets.assets import adversarial_sets
from resources.models import read_history, read_model, write_model
from resources.store import Cell
from tests.conftest import ARCHITECTURES, ATTACKS, CELLS, EXPERIMENT, Lab

EXTRA = {**EXPERIMENT, "attacks": {**EXPERIMENT["attacks"], "extra": {"method": "fgm", "eps": 0.2}}}


def cell_path(entry: dg.EventLogEntry) -> str:
    materialization = entry.asset_materialization
    assert materialization
    partition = materialization.partition
    return "/".join([*materialization.asset_key.path, *(partition.split("|") if partition else [])])


def assets(lab: Lab) -> list[str]:
    return sorted("/".join(key.path[1:]) for key in lab.defs().resolve_asset_graph().get_all_asset_keys())


def failures(result: dg.ExecuteInProcessResult) -> list[Any]:
    return [event.step_failure_data for event in result.all_events if event.is_step_failure]


def causes(error: Any) -> str:
    """The message of a serialized error and of everything that caused it."""
    return "" if error is None else f"{error.message}\n{causes(error.cause)}"


def test_every_cell_has_one_materialization_with_the_data_version_of_its_manifest(looking: Lab) -> None:
    events = [entry for asset in assets(looking) for entry in looking.events(asset)]
    assert Counter(map(cell_path, events)) == Counter(cell.path for cell in looking.store.cells("tiny"))
    assert len(events) == CELLS
    for entry in events:
        materialization = entry.asset_materialization
        assert materialization and materialization.tags
        stored = looking.store.open(next(c for c in looking.store.cells("tiny") if c.path == cell_path(entry)))
        assert materialization.tags["dagster/data_version"] == stored.manifest.data_version
        assert entry.run_id == stored.manifest.run_id


def test_partitions_have_data_versions_of_their_own(looking: Lab) -> None:
    for asset in ("model", "adversarial_set", "evasion_examples", "evasion_metrics", "attack_config"):
        versions = [entry.tags["dagster/data_version"] for entry in looking.events(asset) if entry.tags]
        assert len(set(versions)) == len(versions) > 1, asset


def test_cells_of_two_dimensions_are_found_by_each_of_them(looking: Lab) -> None:
    tags = [entry.asset_materialization.tags for entry in looking.events("adversarial_set")]  # type: ignore[union-attr]
    dimensions = {(tag["dagster/partition/architecture"], tag["dagster/partition/attack"]) for tag in tags if tag}
    assert dimensions == {(architecture, attack) for architecture in ARCHITECTURES for attack in ATTACKS}


def test_the_cells_of_an_asset_are_computed_in_one_run(looking: Lab) -> None:
    for asset in ("model", "adversarial_set", "evasion_examples", "evasion_metrics"):
        assert len({entry.run_id for entry in looking.events(asset)}) == 1, asset


def test_a_cell_is_two_entries_in_the_log_of_its_run(looking: Lab) -> None:
    """That it is planned, and that it is there: each is a write to Dagster's databases."""
    with looking.instance() as instance:
        for asset in ("adversarial_set", "evasion_examples", "evasion_metrics"):
            events = looking.events(asset)
            log = instance.all_logs(events[0].run_id)
            of_cells = Counter(e.dagster_event.partition for e in log if e.dagster_event and e.dagster_event.partition)
            assert set(of_cells.values()) == {2}, (asset, of_cells)
            assert len(log) - 2 * len(events) < 16, "what a run says beside its cells"


def test_everything_is_fresh_once_computed(looking: Lab) -> None:
    statuses = looking.statuses()
    assert len(statuses) == CELLS
    assert set(statuses.values()) == {"FRESH"}


def test_what_is_shown_has_names_without_spaces_and_numbers_of_six_digits(looking: Lab) -> None:
    facts = {}
    for key in looking.defs().resolve_asset_graph().get_all_asset_keys():
        for entry in looking.events("/".join(key.path[1:])):
            assert entry.asset_materialization
            facts |= {
                f"{key.to_user_string()}: {name}": one for name, one in entry.asset_materialization.metadata.items()
            }
    assert not [name for name in facts if " " in name.partition(": ")[2]]
    numbers = {name: one.value for name, one in facts.items() if isinstance(one, dg.FloatMetadataValue)}
    assert numbers and {name: value for name, value in numbers.items() if value != float(f"{value:.6g}")} == {}


def test_columns_are_shown_with_the_types_that_tables_have(looking: Lab) -> None:
    wrong, compared = looking.columns_of_another_type()
    assert wrong == []
    assert compared > 100


@pytest.mark.parametrize(
    ("asset", "expected"),
    [
        ("training_set", ["images", "classes", "image_size", "n"]),
        ("model", ["loss_curves", "parameters", "val_accuracy", "registered_model", "mlflow_run"]),
        ("clean_predictions", ["confusion_matrix", "accuracy", "dagster/row_count"]),
        ("adversarial_set", ["clean_adversarial_difference", "threat_model", "share_of_images_changed", "seed"]),
        ("evasion_examples", ["preview", "target_models", "dagster/row_count"]),
        ("evasion_metrics", ["rates", "robust_accuracy", "le_net/robust_accuracy", "shallow_net/asr"]),
        ("transfer_matrix", ["fgm_0.3", "dagster/row_count"]),
        ("security_curves", ["curves"]),
        ("model_sanity", ["checks", "failed", "dagster/row_count"]),
        ("sanity", ["checks", "failed", "dagster/row_count"]),
        ("report", ["report", "lowest_robust_accuracy"]),
        ("attack_config", ["config", "stored_at", "bytes", "seconds"]),
    ],
)
def test_each_asset_shows_what_a_person_wants_to_see(looking: Lab, asset: str, expected: list[str]) -> None:
    for entry in looking.events(asset):
        assert entry.asset_materialization
        metadata = entry.asset_materialization.metadata
        assert set(expected) <= set(metadata), sorted(metadata)
        pictures = [value.value for value in metadata.values() if "base64" in str(value.value)]
        assert all(re.match(r"!\[.+\]\(data:image/png;base64,[\w+/=]+\)$", str(picture)) for picture in pictures)


def test_a_cell_that_fails_leaves_the_others_of_its_run_and_is_named(lab: Lab) -> None:
    lab.write(EXTRA)
    assert lab.run("attack_config", "fgm_0.1", "extra").success
    lab.break_model("le_net")

    result = lab.run("adversarial_set", "shallow_net|extra", "le_net|extra")

    assert not result.success
    assert lab.find("adversarial_set", architecture="shallow_net", attack="extra")
    assert lab.find("adversarial_set", architecture="le_net", attack="extra") is None
    recorded = [cell_path(entry) for entry in lab.events("adversarial_set") if entry.run_id == result.run_id]
    assert recorded == ["tiny/adversarial_set/shallow_net/extra"]
    (failure,) = failures(result)
    assert failure.user_failure_data.description == ("1 of 2 cells of tiny/adversarial_set failed, the others are kept")
    reason = failure.user_failure_data.metadata["tiny/adversarial_set/le_net/extra"].value
    assert "DamagedCellError" in reason and "tiny/model/le_net is damaged" in reason


def test_a_model_that_gives_nan_fails_its_cells_and_has_no_accuracy(lab: Lab) -> None:
    poison(lab, "le_net")
    before = lab.bytes()

    predicted = lab.run("clean_predictions", "shallow_net", "le_net")
    attacked = lab.run("adversarial_set", "le_net|weak")

    assert not predicted.success and not attacked.success
    (failure,) = failures(predicted)
    assert "non-finite" in failure.user_failure_data.metadata["tiny/clean_predictions/le_net"].value
    (failure,) = failures(attacked)
    assert "non-finite" in causes(failure.error)
    for asset, run_id in (("clean_predictions", predicted.run_id), ("adversarial_set", attacked.run_id)):
        recorded = [cell_path(entry) for entry in lab.events(asset) if entry.run_id == run_id]
        assert [path for path in recorded if "le_net" in path] == []
    assert lab.bytes() == before, "what was served is still served"
    for run in mlflow_runs(predicted.run_id, attacked.run_id):
        if run.data.tags["architecture"] == "le_net":
            assert run.info.status == "FAILED"
            assert run.data.metrics == {}


def poison(lab: Lab, architecture: str) -> None:
    """Replace a model by one that gives NaN: its weights are finite, their sums are not."""
    stored = lab.find("model", architecture=architecture)
    model = read_model(stored)
    good = model.get_weights()
    try:
        model.set_weights([np.resize(np.array([3e38, -3e38], np.float32), weights.shape) for weights in good])
        cell = Cell("tiny/model", {"architecture": architecture})
        write_model(lab.store.at(cell), model, read_history(stored), attributes=stored.manifest.attributes)
    finally:
        model.set_weights(good)  # this process keeps loaded models


def mlflow_runs(*dagster_runs: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    import dioptra_assets as da

    client = MlflowClient(da.tracking_uri())
    experiment = client.get_experiment_by_name("tiny")
    assert experiment
    runs = [
        run
        for dagster_run in dagster_runs
        for run in client.search_runs([experiment.experiment_id], f"tags.dagster_run_id = '{dagster_run}'")
    ]
    assert runs
    return runs


@pytest.mark.parametrize("end", ["report_run_canceled", "report_run_failed"])
def test_an_orphan_step_publishes_nothing_once_its_run_has_ended(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    lab.write(EXTRA)
    assert lab.run("attack_config", "fgm_0.1", "extra").success
    before, events = lab.bytes(), len(lab.events("adversarial_set"))
    attacked = []
    perturb_set = adversarial_sets.perturb_set

    def ended_meanwhile(attack: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        attacked.append(model.name)
        with lab.instance() as instance:
            (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            getattr(instance, end)(run)
        return perturb_set(attack, model, *args, **kwargs)

    monkeypatch.setattr(adversarial_sets, "perturb_set", ended_meanwhile)

    result = lab.run("adversarial_set", "shallow_net|extra", "le_net|extra")

    assert not result.success
    assert "RunEndedError" in "".join(causes(failure.error) for failure in failures(result))
    assert len(attacked) == 1, "nothing more is computed for a run that has ended"
    assert lab.bytes() == before
    assert len(lab.events("adversarial_set")) == events


def test_where_mlflow_is_down_results_are_kept_and_the_log_says_so(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    lab.write(EXTRA)
    assert lab.run("attack_config", "fgm_0.1", "extra").success
    started = time.monotonic()

    result = lab.run("adversarial_set", "shallow_net|extra", "le_net|extra")

    assert time.monotonic() - started < 30
    assert result.success
    for architecture in ARCHITECTURES:
        assert lab.find("adversarial_set", architecture=architecture, attack="extra")
    with lab.instance() as instance:
        lines = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == 30]
    assert len([line for line in lines if "is not logged to MLflow" in line and "127.0.0.1:9" in line]) == 2, lines
