"""Every entry point of the demos as a job: with every parameter that they document, from every door."""

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

import dioptra_assets as da
from dioptra_assets.assets.keyed_configs import keep_config
from dioptra_assets.command_line import app
from dioptra_assets.definitions import defs
from dioptra_assets.entry_points.demos import ENTRY_POINTS
from dioptra_assets.entry_points.entry_point import EntryPointError
from dioptra_assets.entry_points.job import JOB, OP
from dioptra_assets.entry_points.parsing import parse_kwargs, parse_parameters, unused
from dioptra_assets.entry_points.plan import plan
from partitions.dynamic_keys import is_short
from partitions.image_sets import set_document, set_key, set_of
from resources.store import CellStore
from resources.tracking.resource import Tracking
from tests.conftest import ROOT, SETTINGS
from tests.entry_points.test_parsing import DEMOS

# What the demos' documents list, with values; RUN, MODEL and the like come from jobs before.
COMMON = {
    "data_dir": "/nfs/data/Mnist/testing",
    "data_dir_train": "/nfs/data/Mnist/training",
    "data_dir_test": "/nfs/data/Mnist/testing",
    "model_tag": "long",
    "model": "workbench_long_le_net",
    "model_architecture": "le_net",
    "batch_size": "64",
    "seed": "-1",
    "dataset_tar_name": "adv_testing.tar.gz",
    "dataset_name": "adv_testing",
    "load_dataset_from_mlruns": "True",
    "epochs": "1.0",
    "register_model": "True",
    "register_model_name": "workbench_long_le_net",
    "learning_rate": "0.001",
    "optimizer": "Adam",
    "validation_split": "0.2",
    "apply_defense": "False",
    "target_class": "1",
    "target_class_id": "1",
    "poison_fraction": "0.2",
    "label_type": "train",
    "eps": "0.3",
    "eps_step": "0.1",
    "minimal": "0",
    "norm": "inf",
    "th": "1",
    "es": "1",
    "max_iter": "10",
    "window_length": "5",
    "threshold": "0.99",
    "training_split": "0.9",
    "feature_layer_index": "-2",
    "discriminator_layer_1_size": "64",
    "discriminator_layer_2_size": "32",
    "regularization_factor": "5",
    "spatial_smoothing_window_size": "3",
    "spatial_smoothing_apply_fit": "False",
    "spatial_smoothing_apply_predict": "True",
    "jpeg_compression_channels_first": "False",
    "jpeg_compression_quality": "50",
    "jpeg_compression_apply_fit": "True",
    "jpeg_compression_apply_predict": "True",
    "gaussian_augmentation_perform_data_augmentation": "True",
    "gaussian_augmentation_ratio": "0.5",
    "gaussian_augmentation_sigma": "0.1",
    "gaussian_augmentation_apply_fit": "True",
    "gaussian_augmentation_apply_predict": "True",
}
OWN: dict[str, dict[str, str]] = {
    "train": {"load_dataset_from_mlruns": "False", "training_dataset_run_id": "unused"},
    "gen_poison_model": {"load_dataset_from_mlruns": "False", "training_dataset_run_id": "unused"},
    "fgm": {"model_name": "workbench_long_le_net", "model_version": "1"},
    "infer": {"model_name": "workbench_long_le_net", "model_version": "1"},
    "miface": {"learning_rate": "0.1", "model_name": "workbench_long_le_net"},
    "mi": {"learning_rate": "0.1", "model_name": "workbench_long_le_net", "model_version": "1"},
}
TRACKING = Tracking(mlflow_tracking_uri="sqlite://")
MODEL = {"model_name": "workbench_long_le_net"}


def documented(name: str, **more: str) -> list[str]:
    """Every parameter that the demos document for an entry point, at once."""
    values = {one: COMMON[one] for one in DEMOS[name].split() if one in COMMON} | OWN.get(name, {}) | more
    assert set(DEMOS[name].split()) <= set(values)
    return [f"{parameter}={value}" for parameter, value in values.items()]


@pytest.fixture
def workbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for the experiment `workbench` as it is shipped."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    return tmp_path


def submit(name: str, given: list[str]) -> da.Job:
    job = da.submit_job(name, " ".join(f"-P {shlex.quote(one)}" for one in given))
    assert job.status == "finished", job
    return job


def metadata_of(asset: str, partition: str) -> dict[str, Any]:
    with dg.DagsterInstance.get() as instance:
        wanted = dg.AssetRecordsFilter(dg.AssetKey(asset.split("/")), asset_partitions=[partition])
        (record,) = instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization
    return dict(record.asset_materialization.metadata)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_entry_point_runs_with_every_parameter_that_the_demos_document(workbench: Path):
    runner = CliRunner()
    train = submit("train", documented("train"))
    assert any("training_dataset_run_id=unused" in sentence for sentence in train.unused)
    fgm = submit("fgm", documented("fgm"))
    for name, run in (
        ("infer", fgm.mlflow_run_id),
        *(
            (defence, fgm.mlflow_run_id)
            for defence in ("spatial_smoothing", "jpeg_compression", "gaussian_augmentation")
        ),
    ):
        key = "run_id" if name == "infer" else "dataset_run_id"
        submit(name, documented(name, **{key: run}))
    # The command line reads the same row.
    for name in ("miface", "gen_poison_test_data", "gen_poison_clean_data"):
        own = {} if name == "gen_poison_test_data" else MODEL
        given = [text for one in documented(name, **own) for text in ("-P", one)]
        done = runner.invoke(app.app, ["run", name, *given])
        assert done.exit_code == 0, done.output
        assert "finished" in done.output
    assert "data_dir=/nfs/data/Mnist/testing is not used: " in done.output
    submit("pt", documented("pt", max_iter="1", population="5"))  # a search as long as the demos' takes minutes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_config_that_fits_no_key_is_run_kept_shown_and_run_again(workbench: Path):
    poisoned = submit("gen_poison_model", documented("gen_poison_model"))
    key = poisoned.cell.rsplit("/", 1)[-1]
    assert is_short(key) and key.startswith("adversarial_embedding@config=")
    config = da.load("workbench/poisoning_config", attack=key)
    assert (config.feature_layer, config.discriminator_layer_1_size, config.regularization_factor) == (-2, 64, 5)
    assert da.load("workbench/keyed_config", config_key=key) == config.model_dump(mode="json")
    assert metadata_of("workbench/poisoning_config", key)["config"].value["training_split"] == 0.9
    # Asked for again nothing is computed, and a removed cell is made from the config that was kept.
    cells = da.cells("workbench")
    submit("gen_poison_model", documented("gen_poison_model"))
    assert da.cells("workbench").equals(cells)
    shutil.rmtree(workbench / "store" / "workbench" / "poisoning_config" / key)
    done = defs().resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.get() as instance:
        done.execute_in_process(
            asset_selection=[dg.AssetKey(["workbench", "poisoning_config"])], partition_key=key, instance=instance
        )
    assert da.load("workbench/poisoning_config", attack=key) == config


def test_a_key_whose_config_was_altered_is_refused(workbench: Path):
    given = documented("gen_poison_model")
    store = CellStore(str(workbench / "store"))
    step, *_ = plan(
        ENTRY_POINTS["gen_poison_model"], parse_parameters(ENTRY_POINTS["gen_poison_model"], given), store, TRACKING
    )
    assert step.asset == "keyed_config" and step.kept is not None
    key = step.partition["config_key"]
    keep_config(store, "workbench", key, {**step.kept, "target_class": 2})
    job = defs().resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("workbench_poisoning_attack", [key])
        done = job.execute_in_process(
            asset_selection=[dg.AssetKey(["workbench", "poisoning_config"])],
            partition_key=key,
            instance=instance,
            raise_on_error=False,
        )
    assert not done.success
    assert "what the store keeps for this key is another config" in str(done.all_events)


def test_the_launchpad_takes_the_parameters_that_the_demos_document():
    job, run = defs().resolve_job_def(JOB), {"run_id": "f00", "dataset_run_id": "f00"}
    for name in ENTRY_POINTS:
        given = documented(name, **{one: run[one] for one in run if one in DEMOS[name].split()})
        assert dg.validate_run_config(job, {"ops": {OP: {"config": {"entry_point": name, "parameters": given}}}})
        assert set(parse_parameters(ENTRY_POINTS[name], given))
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(job, {"ops": {OP: {"config": {"entry_point": "fgn"}}}})


@pytest.mark.parametrize("name", [name for name in ENTRY_POINTS if name != "mi"])
def test_an_entry_point_names_the_assets_that_it_makes(name: str, tmp_path: Path):
    entry = ENTRY_POINTS[name]
    calls = [list(entry.example)]
    if name == "train":
        calls.append([*entry.example, "attack=baseline@target_class=1@poison_fraction=0.1"])
    if name == "gen_poison_test_data":
        calls.append([*entry.example, "label_type=train"])
    if entry.assets[0] == "defended_set":
        calls.append([*entry.example, "model_architecture=le_net"])
    made: set[str] = set()
    for given in calls:
        steps = plan(
            ENTRY_POINTS[name], parse_parameters(ENTRY_POINTS[name], given), CellStore(str(tmp_path)), TRACKING
        )
        assert next(step.asset for step in steps if step.main) in entry.assets
        made |= {step.asset for step in steps}
    inputs = {"training_set", "testing_set", "model", "clean_predictions"}
    assert {one for one in made - inputs if not one.endswith("_config")} == set(entry.assets) - inputs


def test_a_set_behind_a_defence_is_named_as_it_is_stored(tmp_path: Path):
    given = ["model_architecture=le_net", "asset=defended_set", "defence=jpeg_compression@quality=50"]
    values = parse_parameters(ENTRY_POINTS["infer"], [*given, "image_set=adversarial_set--le_net--fgm@eps=0.3"])
    key = plan(ENTRY_POINTS["infer"], values, CellStore(str(tmp_path)), TRACKING)[-1].partition["image_set"]
    assert set_of(key) == (
        "defended_set",
        {"defence": "jpeg_compression@quality=50", "image_set": "adversarial_set--le_net--fgm@eps=0.3"},
    )
    with pytest.raises(EntryPointError, match=r"parameter 'asset': 'defended_set/jpeg' is not allowed, it must be"):
        parse_parameters(ENTRY_POINTS["infer"], [*given[:1], "asset=defended_set/jpeg"])


def test_a_set_of_a_long_name_has_a_short_key(tmp_path: Path):
    long = {"architecture": "le_net@" + "a" * 90, "attack": "fgm@" + "b" * 90}
    assert len(set_key("adversarial_set", long)) <= 210
    behind = {"defence": "d" * 100, "image_set": set_key("adversarial_set", long)}
    assert is_short(set_key("defended_set", behind))
    values = parse_parameters(
        ENTRY_POINTS["infer"],
        [
            "model_architecture=le_net",
            "asset=defended_set",
            *(f"{dimension}={key}" for dimension, key in behind.items()),
        ],
    )
    kept, *_, last = plan(ENTRY_POINTS["infer"], values, CellStore(str(tmp_path)), TRACKING)
    assert kept.asset == "keyed_config"
    assert kept.kept == set_document("defended_set", behind)
    assert last.partition["image_set"] == kept.partition["config_key"]


def test_what_is_accepted_and_not_needed_is_said():
    given = [
        "model_architecture=le_net",
        "target_class=1",
        "label_type=train",
        "seed=-1",
        "data_dir=/nfs",
        "image_size=28,28,1",
    ]
    assert parse_parameters(ENTRY_POINTS["gen_poison_clean_data"], given) == {
        "model_architecture": "le_net",
        "target_class": 1,
    }
    said = unused(ENTRY_POINTS["gen_poison_clean_data"], given)
    assert [sentence.partition(" is not used: ")[0] for sentence in said] == given[2:]
    assert all(sentence.endswith(".") for sentence in said)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "gen_poison_model",
            ["model_architecture=le_net", "target_class=1", "load_dataset_from_mlruns=True"],
            "entry point 'gen_poison_model', parameter 'load_dataset_from_mlruns' is not taken: The poisons are made",
        ),
        (
            "train",
            ["model_architecture=le_net", "load_dataset_from_mlruns=True"],
            "entry point 'train', parameter 'load_dataset_from_mlruns': give training_dataset_run_id, the MLflow run",
        ),
        ("fgm", ["model=a", "target_index=3"], "entry point 'fgm', parameter 'target_index' is not taken: give the"),
    ],
)
def test_what_would_change_the_result_and_is_not_done_is_refused(name: str, given: list[str], message: str):
    with pytest.raises(EntryPointError) as caught:
        parse_parameters(ENTRY_POINTS[name], given)
    assert str(caught.value).startswith(message)


SEEDS = sorted((Path(os.environ.get("DIOPTRA_ASSETS_DATA", ".")).parent / "seeds").glob("*.txt"))


@pytest.mark.skipif(not SEEDS, reason="the demos' documents are not on this machine")
def test_the_table_of_parameters_is_what_the_demos_document():
    text = "\n".join(path.read_text() for path in SEEDS)
    found: dict[str, set[str]] = {}
    entry = ""
    for line in text.splitlines():
        if heading := re.match(r"-  ``(\w+)``: ", line):
            entry = heading[1]
        elif (parameter := re.match(r"      -  ``(\w+)`` ?: ", line)) and entry:
            found.setdefault(entry, set()).add(parameter[1])
    assert found
    for name, listed in found.items():
        assert listed <= set(DEMOS[name].split()), name
    for kwargs in re.findall(r'"(-P [a-z_]+=[^"{]+)"', text):
        (item,) = parse_kwargs(kwargs)
        assert any(item.partition("=")[0] in one.parameters for one in ENTRY_POINTS.values()), item
