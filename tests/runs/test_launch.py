"""However cells are launched, each is computed once, and a second launch computes what is missing."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from sqlalchemy import Engine, event

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult
from dioptra_assets.dagster_internals import InstanceRef
from dioptra_assets.definitions import experiment_spec, resource_definitions
from dioptra_assets.runs.launch import UnknownExperimentError, materialize_experiment
from dioptra_assets.runs.orphans import LEADER_TAG, clear_leftovers, leader
from partitions.attacks import attack_document
from partitions.experiments import parse_experiment
from resources.documents import write_config
from resources.full_disk import NoRoomError
from resources.store import Cell, CellStore
from resources.user import USER_TAG
from tests.assets.test_boundary import EXTRA, causes, cell_path, failures
from tests.conftest import ARCHITECTURES, ATTACKS, CELLS, EXPERIMENT, ROOT, SETTINGS, Lab
from tests.dagster_internals import (
    BulkActionStatus,
    InProcessCodeLocationOrigin,
    InProcessWorkspaceLoadTarget,
    LoadableTargetOrigin,
    PartitionBackfill,
    TagType,
    create_run_for_test,
    create_test_daemon_workspace_context,
    execute_backfill_iteration,
    get_tag_type,
)

DG = Path(sys.executable).with_name("dg")
MANY = [f"{architecture}|{attack}" for architecture in ARCHITECTURES for attack in ATTACKS]


def paths(cells: Collection[Cell]) -> set[str]:
    assert len({cell.path for cell in cells}) == len(cells)
    return {cell.path for cell in cells}


def test_a_second_launch_computes_nothing(lab: Lab) -> None:
    launched = lab.materialize()
    assert (launched.computed, launched.failed, launched.skipped, launched.fresh) == ([], {}, [], CELLS)


def test_an_unknown_experiment_is_named_beside_those_there_are(lab: Lab) -> None:
    with lab.instance() as instance, pytest.raises(UnknownExperimentError) as raised:
        materialize_experiment(lab.defs(), "tyni", instance=instance, store=lab.store)
    assert str(raised.value) == "there is no experiment 'tyni', available: tiny"


@pytest.mark.parametrize(
    ("broken", "skipped"),
    [
        # A cell that only shares a partition with a failed one is not made from it.
        ({"clean_predictions/le_net"}, {"examples/le_net/weak"}),
        ({"model/le_net"}, {"clean_predictions/le_net", "adversarial_set/le_net/weak", "examples/le_net/weak"}),
        ({"adversarial_set/le_net/weak"}, {"examples/le_net/weak"}),
        ({"testing_set"}, {f"{asset}/{a}/weak" for asset in ("adversarial_set", "examples") for a in ARCHITECTURES}
         | {f"clean_predictions/{a}" for a in ARCHITECTURES} | {"report"}),
    ],
)  # fmt: skip
def test_what_is_made_from_a_failed_cell_is_skipped_and_made_up_for_by_the_next_launch(
    blank: Lab, broken: set[str], skipped: set[str]
) -> None:
    attacks = {"weak": EXPERIMENT["attacks"]["weak"]}
    spec = parse_experiment("tiny", {**EXPERIMENT, "attacks": attacks})

    def compute(cell: CellContext) -> CellResult:
        if cell.cell.path.removeprefix("tiny/") in broken:
            raise RuntimeError("broken")
        return CellResult(write_config(cell.destination, {}))

    def asset(name: str, dimensions: tuple[str, ...] = (), deps: Sequence[str] = ()) -> dg.AssetsDefinition:
        return cell_asset(spec, name, compute, description=name, dimensions=dimensions, deps=deps, kinds=set())

    assets = [
        asset("testing_set"),
        asset("model", ("architecture",)),
        asset("clean_predictions", ("architecture",), ["model", "testing_set"]),
        asset("adversarial_set", ("architecture", "attack"), ["model", "testing_set"]),
        asset("examples", ("architecture", "attack"), ["adversarial_set", "clean_predictions"]),
        asset("report", (), ["examples"]),
    ]
    defs = dg.Definitions(assets=assets, resources=resource_definitions())
    failed = {f"tiny/{path}" for path in broken}
    with blank.instance() as instance:
        first = materialize_experiment(defs, "tiny", instance=instance, store=blank.store)
        broken.clear()
        second = materialize_experiment(defs, "tiny", instance=instance, store=blank.store)
        third = materialize_experiment(defs, "tiny", instance=instance, store=blank.store)

    assert paths(first.failed) == failed
    assert all("RuntimeError: broken" in why for why in first.failed.values())
    assert paths(first.skipped) == {f"tiny/{path}" for path in skipped}
    assert len(first.computed) == 10 - len(failed) - len(skipped)
    assert not second.failed and not second.skipped
    assert paths(second.computed) == paths(first.failed) | paths(first.skipped) | {"tiny/report"}
    assert (third.computed, third.fresh) == ([], 10)


# dg launch


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A home for the project's own experiment `digits`, with a small set, models to attack and two of its attacks."""
    import keras

    from dioptra_assets.robustness.data import DigitsSource
    from dioptra_assets.robustness.training.architectures import build
    from resources.image_store import write_image_set
    from resources.models import write_model

    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    lab = Lab(tmp_path)
    lab.home.mkdir()
    (lab.home / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    lab.mlflow()
    monkeypatch.setenv("DAGSTER_HOME", str(lab.home))
    write_image_set(
        lab.store.at(Cell("digits/testing_set")),
        [next(DigitsSource().load("testing").batches(40))],
        n=40,
        image_shape=(28, 28, 1),
        class_names=tuple(str(digit) for digit in range(10)),
    )
    keras.utils.set_random_seed(0)
    for architecture in ("shallow_net", "le_net"):
        model = build(architecture, (28, 28, 1), 10)
        write_model(
            lab.store.at(Cell("digits/model", {"architecture": architecture})), model, pd.DataFrame({"loss": []})
        )
    for attack in ("fgm_0.2", "fgm_0.3"):
        config = attack_document(experiment_spec("digits").attacks[attack])
        write_config(lab.store.at(Cell("digits/attack_config", {"attack": attack})), config)
    return lab


def launch(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`dg launch`, where a user types it."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [DG, "launch", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_dg_launch_computes_partition_ranges(digits: Lab) -> None:
    done = launch("--assets", "digits/adversarial_set", "--partition-range", "shallow_net|fgm_0.2...le_net|fgm_0.3")
    assert done.returncode == 0, done.stderr
    square = [f"{architecture}/{attack}" for architecture in ARCHITECTURES for attack in ("fgm_0.2", "fgm_0.3")]
    assert stored(digits, "adversarial_set") == sorted(square)
    with digits.instance() as instance:
        records = instance.fetch_materializations(dg.AssetKey(["digits", "adversarial_set"]), limit=100).records
    recorded = [cell_path(record.event_log_entry) for record in records]
    assert sorted(recorded) == [f"digits/adversarial_set/{path}" for path in sorted(square)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asset", "key"), [("attack_config", "fgm_0.05"), ("adversarial_set", "le_net|fgm_0.3")], ids=["config", "set"]
)
def test_dg_launch_computes_single_cells(asset: str, key: str, digits: Lab) -> None:
    before = stored(digits, asset)
    done = launch("--assets", f"digits/{asset}", "--partition", key)
    assert done.returncode == 0, done.stderr
    assert stored(digits, asset) == sorted([*before, key.replace("|", "/")])


def stored(lab: Lab, asset: str) -> list[str]:
    """The partitions of an asset of `digits` that are stored."""
    return [cell.path.removeprefix(f"digits/{asset}/") for cell in lab.store.cells(f"digits/{asset}")]


def test_dg_launch_without_a_home_is_refused_before_anything_is_stored(
    blank: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DIOPTRA_ASSETS_ENV", "")
    monkeypatch.setenv("DIOPTRA_ASSETS_STORE", str(tmp_path / "store"))
    done = launch("--assets", "tiny/attack_config", "--partition", "weak", folder=blank.folder)
    assert done.returncode != 0
    assert f"Run `export DAGSTER_HOME={ROOT}` first, or `dioptra-assets materialize tiny --asset" in (
        done.stdout + done.stderr
    )
    assert CellStore(str(tmp_path / "store")).cells("") == []


def test_a_cell_whose_input_is_missing_names_the_command_that_makes_it(lab: Lab) -> None:
    shutil.rmtree(lab.home / "store" / "tiny/evasion_examples/le_net/weak")
    result = lab.run("evasion_metrics", "le_net|weak")
    (failure,) = failures(result)
    assert (
        "MissingCellError: tiny/evasion_examples/le_net/weak has not been materialized: `dioptra-assets"
        " materialize tiny --asset 'evasion_examples' --cell 'le_net|weak'` makes it"
    ) in causes(failure.error)


# Backfills


@contextmanager
def daemon(lab: Lab) -> Iterator[tuple[dg.DagsterInstance, Callable[[], None]]]:
    """Dagster's backfill daemon, one tick a call, launching its runs in this process."""
    overrides = {
        "run_launcher": {
            "module": "dagster._core.launcher.sync_in_memory_run_launcher",
            "class": "SyncInMemoryRunLauncher",
        },
        "run_coordinator": {
            "module": "dagster._core.run_coordinator.sync_in_memory_run_coordinator",
            "class": "SyncInMemoryRunCoordinator",
        },
    }
    lab.defs()  # makes the project's package importable
    target = LoadableTargetOrigin(
        executable_path=sys.executable, module_name=f"{lab.module}.definitions", working_directory=str(lab.folder)
    )
    load = InProcessWorkspaceLoadTarget(InProcessCodeLocationOrigin(target, location_name=lab.module))
    reference = InstanceRef.from_dir(str(lab.home), overrides=overrides)
    with (
        dg.DagsterInstance.from_ref(reference) as instance,
        create_test_daemon_workspace_context(load, instance) as workspace,
    ):

        def tick() -> None:
            errors = list(execute_backfill_iteration(workspace, logging.getLogger("backfill")))
            assert not any(errors), errors

        yield instance, tick


def request(lab: Lab, instance: dg.DagsterInstance, assets: list[str], partitions: list[str]) -> None:
    """Ask for a backfill, as the UI does."""
    instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            backfill_id="proof",
            asset_graph=lab.defs().resolve_asset_graph(),
            partition_names=partitions,
            asset_selection=[dg.AssetKey(["tiny", asset]) for asset in assets],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
    )


def state(instance: dg.DagsterInstance) -> BulkActionStatus:
    found = instance.get_backfill("proof")
    assert found
    return found.status


def finish(instance: dg.DagsterInstance, tick: Callable[[], None]) -> BulkActionStatus:
    running = (BulkActionStatus.REQUESTED, BulkActionStatus.FAILING)
    for _ in range(20):
        tick()
        if state(instance) not in running:
            return state(instance)
    raise AssertionError("the backfill does not end")


def counts(lab: Lab, asset: str, since: float) -> Counter[str]:
    """How often each partition was materialized."""
    recent = [entry for entry in lab.events(asset) if entry.timestamp >= since]
    return Counter(cell_path(entry).removeprefix(f"tiny/{asset}/").replace("/", "|") for entry in recent)


def backfill_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    return list(instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": "proof"})))


def test_a_backfill_of_many_cells_succeeds_with_each_partition_once(lab: Lab) -> None:
    # Dagster cuts a backfill of two dimensions into a run for each key of the shorter one.
    started = time.time()
    assets = ["adversarial_set", "evasion_examples", "evasion_metrics"]
    with daemon(lab) as (instance, tick):
        request(lab, instance, assets, MANY)
        status = finish(instance, tick)
        runs = backfill_runs(instance)

    assert status == BulkActionStatus.COMPLETED_SUCCESS
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    for asset in assets:
        assert counts(lab, asset, started) == Counter(MANY)
        of_asset = [run for run in runs if dg.AssetKey(["tiny", asset]) in (run.asset_selection or set())]
        assert len(of_asset) == len(ARCHITECTURES)


def test_a_backfill_along_one_dimension_is_one_run(lab: Lab) -> None:
    started = time.time()
    of_le_net = [key for key in MANY if key.startswith("le_net|")]
    with daemon(lab) as (instance, tick):
        request(lab, instance, ["adversarial_set"], of_le_net)
        status = finish(instance, tick)
        runs = backfill_runs(instance)

    assert status == BulkActionStatus.COMPLETED_SUCCESS
    assert len(runs) == 1, "TensorFlow is imported once"
    assert counts(lab, "adversarial_set", started) == Counter(of_le_net)


def test_a_backfill_in_which_a_cell_fails_counts_that_cell_as_failed_and_no_other(lab: Lab) -> None:
    started = time.time()
    lab.write(EXTRA)
    assert lab.run("attack_config", "extra").success
    lab.break_model("le_net")
    with daemon(lab) as (instance, tick):
        request(lab, instance, ["adversarial_set"], ["shallow_net|extra", "le_net|extra"])
        status = finish(instance, tick)
        done = instance.get_backfill("proof")
        assert done and done.asset_backfill_data
        failed = done.asset_backfill_data.failed_and_downstream_subset
        kept = done.asset_backfill_data.materialized_subset

    assert status == BulkActionStatus.COMPLETED_FAILED
    assert {key.partition_key for key in failed.iterate_asset_partitions()} == {"le_net|extra"}
    assert {key.partition_key for key in kept.iterate_asset_partitions()} == {"shallow_net|extra"}
    assert counts(lab, "adversarial_set", started) == Counter(["shallow_net|extra"])


@pytest.mark.slow
def test_a_backfill_through_the_daemon_and_the_launcher_that_users_run(lab: Lab) -> None:
    started = time.time()
    (lab.folder / "workspace.yaml").write_text(
        f"load_from:\n  - python_module:\n      module_name: {lab.module}.definitions\n"
        f"      working_directory: {lab.folder}\n      location_name: {lab.module}\n"
    )
    process = subprocess.Popen(
        [Path(sys.executable).with_name("dagster-daemon"), "run", "-w", "workspace.yaml"],
        cwd=lab.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with lab.instance() as instance:
            request(lab, instance, ["adversarial_set"], MANY)
            while state(instance) == BulkActionStatus.REQUESTED and time.time() < started + 300:
                time.sleep(1)
            status, runs = state(instance), backfill_runs(instance)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    assert status == BulkActionStatus.COMPLETED_SUCCESS
    assert counts(lab, "adversarial_set", started) == Counter(MANY)
    assert len(runs) == len(ARCHITECTURES)


def test_a_killed_launch_does_not_block_the_next(lab: Lab) -> None:
    """It leaves a run that says started, and its place in the pool `gpu`, where there is room for one."""
    shutil.rmtree(lab.home / "store" / "tiny" / "adversarial_set" / "le_net")
    script = f"""
import os, signal
import dioptra_assets.assets.adversarial_sets as sets
sets.prepare_device = lambda: os.kill(os.getpid(), signal.SIGKILL)
from pathlib import Path
from tests.conftest import Lab
Lab(Path({str(lab.folder)!r})).materialize()
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    with lab.instance() as instance:
        held = instance.event_log_storage.get_concurrency_info("gpu").claimed_slots
        (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        assert [slot.run_id for slot in held] == [run.run_id]
    launched = lab.materialize()
    assert not launched.failed and len(launched.computed) == len(ATTACKS)
    with lab.instance() as instance:
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE  # type: ignore[union-attr]
        assert not instance.event_log_storage.get_concurrency_info("gpu").claimed_slots


def test_a_full_disk_under_the_home_is_one_sentence_and_the_same_command_goes_on(lab: Lab) -> None:
    def full(connection: Any, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes it for: no larger than it is

    (lab.home / "store/tiny/evasion_metrics/le_net/weak/CURRENT").unlink()
    event.listen(Engine, "connect", full)
    try:
        with pytest.raises(NoRoomError) as raised:
            for _ in range(200):  # there may be room left in a page
                lab.materialize()
                (lab.home / "store/tiny/evasion_metrics/le_net/weak/CURRENT").unlink()
    finally:
        event.remove(Engine, "connect", full)
    said = str(raised.value)
    assert said.startswith(f"{lab.home}: the disk is full (") and "bytes are free" in said
    assert "\n" not in said
    assert lab.materialize().failed == {}


def test_runs_led_from_here_name_their_code_location_and_show_no_tag_of_our_own_but_who_launched(looking: Lab) -> None:
    with looking.instance() as instance:
        run = instance.get_runs(limit=1)[0]
        assert run.remote_job_origin is not None, "Dagster's timeline leaves out runs without one"
        assert run.remote_job_origin.location_name == f"{looking.module}.definitions"
        assert run.remote_job_origin.job_name == run.job_name
        shown = {key for key in run.tags if get_tag_type(key) != TagType.HIDDEN and not key.startswith("dagster/")}
        assert shown <= {USER_TAG}


def test_a_killed_run_of_a_release_that_tagged_it_otherwise_is_ended_too(lab: Lab) -> None:
    with lab.instance() as instance:
        former = {"dioptra_assets/led_by": leader()[LEADER_TAG] + "9"}
        gone = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=former)
        assert clear_leftovers(instance) == [gone.run_id]


def test_a_run_that_a_living_process_leads_is_left_alone(lab: Lab) -> None:
    with lab.instance() as instance:
        mine = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=leader())
        elsewhere = {LEADER_TAG: "another-machine:1:0.00"}
        other = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=elsewhere)
        daemons = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
        gone = create_run_for_test(
            instance, status=dg.DagsterRunStatus.STARTED, tags={LEADER_TAG: leader()[LEADER_TAG] + "9"}
        )
        assert clear_leftovers(instance) == [gone.run_id]
        for run in (mine, other, daemons):
            assert not instance.get_run_by_id(run.run_id).is_finished  # type: ignore[union-attr]
