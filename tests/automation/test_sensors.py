"""New registered models, from anyone's registration to a verdict, with a real MLflow on SQLite."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import keras
import pandas as pd
import pytest

import dioptra_assets as da
from dioptra_assets.automation.jobs import NIGHTLY_JOB, NIGHTLY_OP
from dioptra_assets.command_line import overview
from dioptra_assets.command_line.overview import counted
from dioptra_assets.robustness.model_files import trial
from partitions.experiments import Watch
from resources.tables import read_table
from resources.tracking.client import file_sha256
from tests.conftest import Lab
from tests.registry import ONE_ATTACK, QUIET, WATCHED, Follower, client, model_file, register


@pytest.fixture
def watching(blank: Lab) -> Lab:
    """An experiment that watches the registry, and trains nothing."""
    blank.write(ONE_ATTACK)
    return blank


def test_what_is_watched_is_attacked_whoever_registered_it_and_nothing_else(watching: Lab, tmp_path: Path) -> None:
    path = model_file(tmp_path)
    register(watching, path)
    register(watching, path, tags={"reviewed": "yes"})
    register(watching, path, "other_le_net")
    follower = Follower(watching)
    asked = follower.tick(start=False)
    assert follower.partitions == ["team_le_net@1"]
    (models,) = [one for one in asked if any(key.path[-1] == "model" for key in one.asset_selection or [])]
    assert [key.path[-1] for key in models.asset_selection or []] == ["testing_set", "model", "clean_predictions"]
    assert models.tags["dagster/asset_partition_range_start"] == "team_le_net@1"
    assert {"tiny", "0"} <= set(models.tags.values())


def test_a_registered_model_is_attacked_and_gated_once(
    blank: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank.write(WATCHED)
    register(blank, model_file(tmp_path))
    follower = Follower(blank)
    follower.follow()
    own = {"architecture": "team_le_net@1"}
    theirs = read_table(blank.find("registered_model/evasion_metrics", **own, attack="weak"))
    assert list(theirs["target"]) == ["team_le_net@1"]
    assert theirs["robust_accuracy"].item() > 0.7
    assert blank.find("registered_model/evasion_gate", **own, attack="fgm") is not None
    verdict = follower.verdicts["team_le_net@1"]
    assert verdict.status == "passed" and "robust_accuracy >= 0.99" in verdict.why  # a warning is said, and no more
    assert len(verdict.digest) == 64
    monkeypatch.setattr(overview, "defs", blank.defs)
    states = counted(overview.assets("tiny"), by_experiment=True)["tiny"]
    assert set(states) == {"up to date"}, "verdicts are reported, and are no cells that are missing"
    before, count = blank.bytes(), len(follower.runs)
    follower.cursor = None
    assert Follower(blank).follow() == 0 and follower.follow() == 0
    assert blank.bytes() == before and len(follower.runs) == count


def test_ten_versions_that_come_together_share_their_runs(watching: Lab, tmp_path: Path) -> None:
    path = model_file(tmp_path)
    for _ in range(10):
        register(watching, path)
    follower = Follower(watching)
    follower.follow()
    assert {one.status for one in follower.verdicts.values()} == {"passed"} and len(follower.verdicts) == 10
    # Configs, models, attacks, sanity checks, the cells of gates, and the table of all versions.
    assert [run["assets"][0] for run in follower.runs] == [
        "attack_config",
        "testing_set",
        "adversarial_set",
        "model_sanity",
        "evasion_gate",
        "versions",
    ]


def test_the_robustness_of_versions_is_followed_over_time(watching: Lab, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no registered model has been attacked"):
        da.versions("tiny")
    follower = Follower(watching)
    for _ in range(2):
        register(watching, model_file(tmp_path))
        follower.follow()
    table = da.versions("tiny")
    assert list(zip(table["version"], table["attack"], strict=True)) == [(1, "weak"), (2, "weak")]
    dates = table.drop_duplicates("version")["registered"]
    assert dates.is_monotonic_increasing and dates.is_unique and (pd.Timestamp.now("UTC") - dates.iloc[0]).days == 0
    metrics = da.load("tiny/registered_model/evasion_metrics", architecture="team_le_net@2", attack="weak")
    assert table["robust_accuracy"].iloc[-1] == metrics["robust_accuracy"].item()
    # What the UI shows was computed again after the second of the two.
    stored = da.load("tiny/registered_model/versions")
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)
    wrong, _ = watching.columns_of_another_type()
    assert wrong == []
    (event, *_) = reversed(watching.events("registered_model/versions"))
    assert event.asset_materialization
    shown = event.asset_materialization.metadata["versions_over_time"]
    assert "data:image/png;base64" in str(shown.value)


def test_a_night_attacks_what_was_registered_and_fetches_no_model_twice(blank: Lab, tmp_path: Path) -> None:
    blank.write({**ONE_ATTACK, "schedule": "0 2 * * *"})
    register(blank, model_file(tmp_path))
    config = {"ops": {NIGHTLY_OP: {"config": {"experiment": "tiny"}}}}
    for _ in range(2):
        with blank.instance() as instance:
            job = blank.defs().resolve_job_def(NIGHTLY_JOB)
            assert job.execute_in_process(run_config=config | QUIET, instance=instance).success
    assert list(da.versions("tiny")["attack"]) == ["weak"]
    for asset in ("model", "versions"):
        assert len(blank.events(f"registered_model/{asset}")) == 1
    assert Follower(blank).verdicts["team_le_net@1"].status == "passed"


class Shouting(keras.layers.Layer):
    """A layer that is no built-in one."""

    def call(self, inputs: Any) -> Any:
        return inputs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: keras.Sequential([keras.Input((8, 8, 1)), Shouting(), m]), "Shouting"),
        (lambda m: keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]),
         "it takes images of (4, 4, 1), these are (8, 8, 1)"),
        (lambda m: keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(7)]),
         "it gives (7,) numbers per image, expected 10 logits"),
        (lambda m: keras.Sequential([m, keras.layers.Softmax()]), "it gives probabilities: leave the softmax out"),
        (lambda m: keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), m]),
         "put `keras.layers.Rescaling(255)` in front of it"),
    ],
    ids=["code", "size", "classes", "softmax", "range"],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_not_judged_and_a_check_of_its_partition_says_why(
    watching: Lab, tmp_path: Path, change: Callable[[Any], Any], said: str
) -> None:
    key = register(watching, model_file(tmp_path, change), "team_odd")
    good = register(watching, model_file(tmp_path))
    follower = Follower(watching)
    follower.follow()
    verdicts = follower.verdicts
    assert verdicts[key].status == "not judged" and said in verdicts[key].why
    assert verdicts[good].status == "passed", "one that is refused holds up no other"
    assert watching.find("registered_model/model", architecture=key) is None
    with watching.instance() as instance:
        records = instance.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION))
    failed = [
        (data.check_name, data.partition)
        for record in records
        if (event := record.event_log_entry.dagster_event) and not (data := event.asset_check_evaluation_data).passed
        if data.asset_key.path[1] == "registered_model"
    ]
    assert failed and all(partition == key for _, partition in failed)
    assert follower.follow() == 0, "a model that is refused is not fetched again"


def test_a_file_that_ends_the_process_which_loads_it_is_a_failed_check_and_holds_up_no_other(
    watching: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(trial, "command", lambda _: [sys.executable, "-c", ending])
    good = register(watching, model_file(tmp_path))
    path = model_file(tmp_path, tilt=0.01)
    bad = register(watching, path, "team_bad")
    trial.known.remove(file_sha256(path))
    follower = Follower(watching)
    follower.follow()
    assert follower.verdicts[good].status == "passed"
    assert follower.verdicts[bad].status == "not judged"
    assert "ends the process (SIGSEGV)" in follower.verdicts[bad].why
    assert follower.follow() == 0, "it is not tried again"


def test_a_file_that_is_no_keras_model_is_refused_by_name(watching: Lab, tmp_path: Path) -> None:
    pickle = tmp_path / "model.pkl"
    pickle.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    key = register(watching, pickle, "team_pickle")
    follower = Follower(watching)
    follower.follow()
    assert "must hold one .keras file, found model.pkl" in follower.verdicts[key].sentence


def test_an_alias_is_followed(blank: Lab, tmp_path: Path) -> None:
    blank.write({**ONE_ATTACK, "watch": {"name": "team_*", "alias": "champion"}})
    path = model_file(tmp_path)
    for _ in range(3):
        register(blank, path, tags={})
    follower = Follower(blank)
    assert follower.tick() == []
    for number in ("3", "2"):
        client(blank).set_registered_model_alias("team_le_net", "champion", number)
        follower.follow()
    # Version 3 exists still: what was found of it stays.
    assert follower.partitions == ["team_le_net@3", "team_le_net@2"]
    assert {key: one.status for key, one in follower.verdicts.items()} == dict.fromkeys(follower.partitions, "passed")


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
        ({"alias": "champion"}, "x", {}, False),
    ],
)
def test_what_a_watch_takes(watch: dict[str, str], name: str, tags: dict[str, str], takes: bool) -> None:
    assert Watch(**watch).takes(name, tags) is takes


def test_a_watch_for_an_alias_takes_the_version_that_it_names() -> None:
    assert Watch(alias="champion").takes("x", {}, ["challenger", "champion"])
    assert not Watch(alias="champion").takes("x", {}, ["challenger"])
