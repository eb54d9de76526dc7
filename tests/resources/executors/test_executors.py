"""One setting chooses where steps run; the bytes are the same everywhere, and a dead worker is noticed."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from obstore.store import LocalStore

from benchmarks import clusters
from dioptra_assets.assets import adversarial_sets, retries
from dioptra_assets.experiment import experiment_assets
from dioptra_assets.robustness.attacks import perturb_set
from partitions.experiments import parse_experiment
from resources.executors import backfills, choice
from resources.store import CellStore, StoreError
from tests.conftest import EXPERIMENT, Lab

SETS = [("shallow_net", "fgm_0.1"), ("shallow_net", "weak"), ("le_net", "fgm_0.3")]


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine")
    with clusters.redis() as url:
        yield url


def surroundings(lab: Lab) -> dict[str, str]:
    """What a worker must know to find the code and the home of a lab."""
    return {"PYTHONPATH": os.pathsep.join([str(lab.folder), str(clusters.ROOT)]), "DAGSTER_HOME": str(lab.home)}


def versions(lab: Lab) -> dict[str, str]:
    return {cell.path: lab.store.open(cell).manifest.data_version for cell in lab.store.cells("tiny")}


def forget(lab: Lab, *cells: tuple[str, str]) -> None:
    for cell in cells:
        shutil.rmtree(lab.home.joinpath("store", "tiny", "adversarial_set", *cell))


def test_an_unknown_executor_is_named_beside_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "slurm")
    with pytest.raises(choice.SettingError) as raised:
        choice.executor()
    assert str(raised.value) == (
        "DIOPTRA_ASSETS_EXECUTOR=slurm: there is no such executor,"
        " available: in_process, multiprocess, celery, ray, k8s"
    )


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "celery")
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    with pytest.raises(choice.SettingError, match=r"pip install 'dioptra-assets\[celery\]'"):
        choice.executor()


@pytest.mark.parametrize("variable", ["DIOPTRA_ASSETS_GPUS_PER_CELL", "DIOPTRA_ASSETS_CELLS_PER_RUN"])
@pytest.mark.parametrize("text", ["many", "-1", "nan"])
def test_a_setting_that_is_no_number_is_refused(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(choice.SettingError, match=f"{variable}={text} is not allowed"):
        choice.gpu_tags() if "GPUS" in variable else backfills.cells_per_run()


@pytest.mark.parametrize("name", list(choice.ENGINES))
def test_each_executor_is_the_one_of_its_name_and_takes_its_configuration(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", name)
    assert choice.executor().name == name


def test_a_backfill_is_cut_for_clusters_and_whole_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backfills.backfill_policy().max_partitions_per_run is None
    monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "celery")
    assert backfills.backfill_policy().max_partitions_per_run == 10
    monkeypatch.setenv("DIOPTRA_ASSETS_CELLS_PER_RUN", "3")
    assert backfills.backfill_policy().max_partitions_per_run == 3


def test_every_step_with_a_gpu_asks_each_engine_for_one_in_its_own_schema() -> None:
    from dagster_k8s.job import get_user_defined_k8s_config
    from dagster_ray.configs import RayExecutionConfig

    assets = experiment_assets(parse_experiment("tiny", dict(EXPERIMENT)))
    steps = [asset.op for asset in assets if isinstance(asset, dg.AssetsDefinition)]
    with_gpu = [step for step in steps if step.pool == "gpu"]
    assert {"tiny__model", "tiny__adversarial_set", "tiny__evasion_examples"} <= {step.name for step in with_gpu}
    for step in with_gpu:
        assert step.tags["dagster-celery/queue"] == "gpu"
        assert RayExecutionConfig.from_tags(step.tags).num_gpus == 1
        config = get_user_defined_k8s_config(step.tags)
        assert config.container_config["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
        assert config.pod_spec_config["tolerations"][0]["key"] == "nvidia.com/gpu"
    for step in steps:
        assert step.pool == "gpu" or not any(tag.startswith("dagster-") for tag in step.tags)


def test_a_kubernetes_word_that_is_not_in_the_schema_is_refused() -> None:
    from dagster_k8s.job import get_user_defined_k8s_config

    tags = dict(choice.gpu_tags())
    tags["dagster-k8s/config"] = json.dumps({"container_config": {"resourcez": {}}})
    with pytest.raises(Exception, match="resourcez"):
        get_user_defined_k8s_config(tags)


def test_a_job_that_leads_runs_is_no_work_for_the_workers_it_waits_for(
    looking: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "celery")
    defs = looking.defs()
    for name in ("entry_point", "nightly"):
        assert defs.resolve_job_def(name).executor_def.name == "in_process"
    assert defs.resolve_implicit_global_asset_job_def().executor_def.name == "celery"


def test_a_broker_that_is_away_for_a_moment_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery import Celery

    from resources.executors import celery

    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine")
    monkeypatch.setattr(celery, "ANSWER_SECONDS", 0.2)
    port, said = clusters.free_port(), list[str]()
    url = f"redis://127.0.0.1:{port}/0"
    with clusters.redis(port, tmp_path):
        app = Celery(broker=url, backend=url, set_as_current=False)
        task = celery.WatchedTask(app, app.AsyncResult("a step"), "gpu", said.append)
        assert task.why_lost() is None
        assert said == ["no Celery worker serves the queue 'gpu': start one with `make worker`"]
        app.backend.store_result("a step", {"hostname": "gpu0@here"}, "STARTED")
    assert task.why_lost() is None and task.why_lost() is None
    assert len(said) == 2 and said[1].startswith("the broker of Celery does not answer, it is waited for 300 s")
    monkeypatch.setattr(celery, "AWAY_SECONDS", 0.0)
    assert str(task.why_lost()).startswith("the broker of Celery has not answered for 0 s")
    monkeypatch.setattr(celery, "AWAY_SECONDS", 300.0)
    with clusters.redis(port, tmp_path):
        assert app.AsyncResult("a step").state == "STARTED"  # it keeps what it was told
        assert task.why_lost() is None  # it finds that its connection was closed
        assert [task.why_lost() for _ in range(celery.SILENCES)] == [None] * celery.SILENCES  # the first begins anew
        assert task.why_lost() == "Celery worker gpu0@here was lost while it ran this step"
        app.backend.store_result("a step", "its events", "SUCCESS")
        assert task.why_lost() is None


def test_a_step_is_submitted_again_while_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from resources.executors import celery

    monkeypatch.setattr(celery, "AWAY_PAUSE_SECONDS", 0.0)
    tried: list[str] = []

    def ask() -> str:
        tried.append("")
        if len(tried) < 3:
            raise ConnectionError("connection refused")
        return "submitted"

    assert celery.patiently(ask, lambda said: None) == "submitted" and len(tried) == 3
    monkeypatch.setattr(celery, "AWAY_SECONDS", -1.0)
    tried.clear()
    with pytest.raises(ConnectionError):
        celery.patiently(ask, lambda said: None)


def test_celery_makes_the_same_bytes(lab: Lab, broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIOPTRA_ASSETS_CELERY_BROKER", broker)
    before = versions(lab)
    forget(lab, *SETS)
    with clusters.celery_worker(broker, lab.folder / "worker.log", surroundings(lab)):
        monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "celery")
        launched = lab.materialize()
    assert not launched.failed and {cell.asset for cell in launched.computed} == {"tiny/adversarial_set"}
    assert len(launched.computed) == len(SETS)
    assert versions(lab) == before
    assert "celery" in (lab.folder / "worker.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["the worker", "its child"])
def test_a_killed_celery_worker_is_noticed_and_the_cell_computed_by_the_next(
    killed: str, lab: Lab, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resources.executors import celery

    monkeypatch.setattr(celery, "ASK_SECONDS", 1)
    monkeypatch.setattr(celery, "ANSWER_SECONDS", 0.5)
    monkeypatch.setenv("DIOPTRA_ASSETS_CELERY_BROKER", broker)
    before, log = versions(lab), lab.folder / "worker.log"
    forget(lab, SETS[0])
    with clusters.celery_worker(broker, log, surroundings(lab)) as worker:

        def kill() -> None:
            while b"received" not in log.read_bytes():
                time.sleep(0.05)
            time.sleep(0.5)
            children = subprocess.run(["pgrep", "-P", str(worker.pid)], capture_output=True, text=True, check=True)
            for process in [int(child) for child in children.stdout.split()] + [worker.pid] * (killed == "the worker"):
                os.kill(process, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "celery")
        launched = lab.materialize()
        thread.join()
    assert [cell.path for cell in launched.failed] == ["tiny/adversarial_set/" + "/".join(SETS[0])]
    assert "lost" in next(iter(launched.failed.values())) or "WorkerLostError" in str(launched.failed)
    with lab.instance() as instance:
        (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert run.tags["dagster/failure_reason"] == "RUN_EXCEPTION"  # that of a step would not be retried
    with clusters.celery_worker(broker, lab.folder / "next.log", surroundings(lab)):
        assert not lab.materialize().failed
    assert versions(lab) == before


@pytest.mark.slow
def test_a_step_that_has_begun_is_done_while_the_broker_is_away(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine")
    port, before, log = clusters.free_port(), versions(lab), lab.folder / "worker.log"
    monkeypatch.setenv("DIOPTRA_ASSETS_CELERY_BROKER", f"redis://127.0.0.1:{port}/0")
    forget(lab, SETS[0])
    with ExitStack() as first:
        first.enter_context(clusters.redis(port, lab.folder))
        with clusters.celery_worker(f"redis://127.0.0.1:{port}/0", log, surroundings(lab)):

            def stop() -> None:
                while b"received" not in log.read_bytes():
                    time.sleep(0.05)
                first.close()

            thread = threading.Thread(target=stop)
            thread.start()
            monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "celery")
            launched = lab.materialize()
            thread.join()
    assert not launched.failed and len(launched.computed) == 1
    assert versions(lab) == before


@pytest.mark.slow
def test_an_interrupted_run_takes_its_step_back_from_the_worker_that_has_begun_it(
    lab: Lab, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIOPTRA_ASSETS_CELERY_BROKER", broker)
    before, log = versions(lab), lab.folder / "worker.log"
    forget(lab, SETS[0])
    with clusters.celery_worker(broker, log, surroundings(lab)):

        def interrupt() -> None:
            while b"received" not in log.read_bytes():
                time.sleep(0.05)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "celery")
        with pytest.raises((KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
            lab.materialize()
        thread.join()
        assert versions(lab).keys() != before.keys()
        launched = lab.materialize()  # by the same worker
        assert not launched.failed and len(launched.computed) == 1
    assert b"DagsterExecutionInterruptedError" in log.read_bytes()
    assert versions(lab) == before


@pytest.mark.slow
def test_two_ray_nodes_make_the_same_bytes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = versions(lab)
    forget(lab, *SETS)
    with clusters.ray_cluster(surroundings(lab)) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setenv("DIOPTRA_ASSETS_EXECUTOR", "ray")
        launched = lab.materialize()
    assert not launched.failed and len(launched.computed) == len(SETS)
    assert versions(lab) == before


def test_a_retry_of_a_run_keeps_the_cells_that_its_first_try_has_done(lab: Lab) -> None:
    forget(lab, *SETS[:2])
    first = lab.run("adversarial_set", "shallow_net|fgm_0.1")
    assert first.success
    tags: dict[str, Any] = {
        "dagster/asset_partition_range_start": "shallow_net|fgm_0.1",
        "dagster/asset_partition_range_end": "shallow_net|fgm_0.3",
    }
    chained = {"dagster/parent_run_id": first.run_id, "dagster/root_run_id": first.run_id, "dagster/retry_number": "1"}
    with lab.instance() as instance:
        job = lab.defs().resolve_implicit_global_asset_job_def()
        selection = [dg.AssetKey(["tiny", "adversarial_set"])]
        again = job.execute_in_process(asset_selection=selection, instance=instance, tags=tags | chained)
    assert {event.partition for event in again.get_asset_materialization_events()} == {"shallow_net|fgm_0.3"}


def test_a_store_that_is_away_for_a_moment_costs_no_cell_that_was_done(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def away_at_the_second(attack: Any, *args: Any, **kwargs: Any) -> Any:
        done.append(str(attack.eps))
        if len(done) == 2:
            raise StoreError("cannot write: connection refused")
        return perturb_set(attack, *args, **kwargs)

    monkeypatch.setattr(adversarial_sets, "perturb_set", away_at_the_second)
    monkeypatch.setattr(retries, "STORE_RETRY_SECONDS", 0)
    monkeypatch.setattr(CellStore, "remote", property(lambda self: True))
    monkeypatch.setattr(CellStore, "open_prefix", lambda self, prefix: LocalStore(Path(self.url, prefix), mkdir=True))
    assert lab.run("adversarial_set", "shallow_net|fgm_0.1", "shallow_net|fgm_0.3").success
    assert done == ["0.1", "0.3", "0.3"]
    partitions = [str(event.asset_materialization.partition) for event in lab.events("adversarial_set")]  # type: ignore[union-attr]
    assert sorted(partitions[-2:]) == ["shallow_net|fgm_0.1", "shallow_net|fgm_0.3"]
