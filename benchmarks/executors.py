"""What a cell costs beside its computation, under each executor: `python -m benchmarks.executors [--quick]`.

The same backfill of 20 FGM cells, first as one run, then one cell a run; every executor must make the same bytes.
Celery wants a `redis-server` on the machine. The table is kept in results/executors.md.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import clusters
from benchmarks.cells import EXPERIMENT, QUICK
from benchmarks.measure import keep

ENGINES = ("in_process", "multiprocess", "celery", "ray")
PACKAGE = "bench_executors"
DEFINITIONS = """
from pathlib import Path

import dagster as dg

from dioptra_assets.definitions import code_location


@dg.definitions
def defs():
    return code_location(Path(__file__).parent)
"""
EXPLAINED = """{cells} FGM cells of digits (`adversarial_set`: 2 models, {attacks} eps), stored, tracked in MLflow and
reported to Dagster. Beside compute: wall time less that of the attacks alone, a cell. Warm: the workers have run a
backfill before."""


class _EnoughError(Exception):
    """The cells that are measured are done."""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    executor: str
    way: str
    cells: int
    seconds: float
    alone: float
    same: bool

    def __str__(self) -> str:
        beside = (self.seconds - self.alone) / self.cells
        same = "yes" if self.same else "NO"
        return f"| {self.executor} | {self.way} | {self.cells} | {self.seconds:.1f} | {beside:.2f} | {same} |"


def main() -> None:
    """Measure every executor in turn, and keep the table."""
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        _project(root, QUICK if quick else EXPERIMENT)
        os.environ |= {"DAGSTER_HOME": str(root / "home"), "TF_CPP_MIN_LOG_LEVEL": "3", "DIOPTRA_ASSETS_ENV": ""}
        sys.path.append(folder)  # not first: Dagster takes that for the folder of a script and leaves it out
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, str(clusters.ROOT)])
        _backfill("in_process")  # models and all else that the cells are made from
        alone = _attacks_alone(root)
        expected = _versions(root)
        cells = len(expected)
        lines = []
        for engine in ENGINES:
            with _workers(engine, root) as ready:
                if not ready:
                    continue
                if engine == "celery":
                    _forget(root, list(expected))
                    _backfill(engine)
                slow = engine in ("multiprocess", "ray")
                for way, limit, chosen in (
                    ("one run", "1000", list(expected)),
                    ("a run each", "1", list(expected)[: 3 if slow else cells]),
                ):
                    _forget(root, chosen)
                    os.environ["DIOPTRA_ASSETS_CELLS_PER_RUN"] = limit
                    seconds = _backfill(engine)
                    share = sum(alone[cell] for cell in chosen)
                    name = f"{engine}, warm" if engine in ("celery", "in_process") else engine
                    made = _versions(root)
                    if len(made) < cells:
                        raise RuntimeError(f"{engine} made {len(made)} of {cells} cells")
                    lines.append(Line(name, way, len(chosen), seconds, share, made == expected))
                    print(lines[-1], flush=True)
        stack.close()
    head = "| executor | the backfill as | cells | wall s | s a cell beside compute | same bytes |"
    explained = EXPLAINED.format(cells=cells, attacks=cells // 2)
    text = "\n".join([head, "|---|---|---|---|---|---|", *map(str, lines)])
    if not quick:
        keep("executors", f"{explained}\n\n{text}")


def _project(root: Path, experiment: dict[str, Any]) -> None:
    folder = root / PACKAGE / "defs" / "bench"
    folder.mkdir(parents=True)
    (root / "home").mkdir()
    shutil.copy(clusters.ROOT / "dagster.yaml", root / "home")
    document = {"type": "dioptra_assets.experiment.Experiment", "attributes": experiment}
    (folder / "defs.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(document))))
    (root / PACKAGE / "definitions.py").write_text(DEFINITIONS)
    for package in (root / PACKAGE, root / PACKAGE / "defs"):
        (package / "__init__.py").touch()
    (root / "pyproject.toml").write_text(
        f'[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "{PACKAGE}"\n'
    )


@contextmanager
def _workers(engine: str, root: Path) -> Iterator[bool]:
    """What an executor needs to be running."""
    with ExitStack() as stack:
        if engine == "celery":
            if shutil.which("redis-server") is None:
                print("celery: not measured, there is no redis-server on this machine")
                yield False
                return
            os.environ["DIOPTRA_ASSETS_CELERY_BROKER"] = broker = stack.enter_context(clusters.redis())
            stack.enter_context(clusters.celery_worker(broker, root / "worker.log", {}))
        if engine == "ray":
            os.environ["RAY_ADDRESS"] = stack.enter_context(clusters.ray_cluster({}))
        yield True


def _backfill(engine: str) -> float:
    """Materialize what is missing up to the adversarial sets; the seconds that these took."""
    import importlib

    import dagster as dg

    from dioptra_assets.runs.launch import materialize_experiment
    from resources import settings
    from resources.store import CellStore

    os.environ["DIOPTRA_ASSETS_EXECUTOR"] = engine
    times: dict[str, float] = {}

    def begun(line: str) -> None:
        asset = line.split(":", maxsplit=1)[0]
        times[asset] = time.perf_counter()
        if asset not in ("bench/adversarial_set",) and "bench/adversarial_set" in times:
            raise _EnoughError

    module = f"{PACKAGE}.definitions"
    defs = importlib.import_module(module).defs()
    with dg.DagsterInstance.get() as instance:
        store = CellStore(settings.store_url())
        try:
            launched = materialize_experiment(defs, "bench", instance=instance, store=store, log=begun, module=module)
            raise RuntimeError(f"the adversarial sets were not reached: {launched.failed}")
        except _EnoughError:
            (run,) = instance.get_runs(limit=1)
            if not run.is_success:
                events = [entry.dagster_event for entry in instance.all_logs(run.run_id) if entry.dagster_event]
                raise RuntimeError(f"{engine}: {[str(event.event_specific_data) for event in events][-1]}") from None
            begin, end = list(times.values())[-2:]
            return end - begin


def _attacks_alone(root: Path) -> dict[tuple[str, str], float]:
    """(architecture, attack) -> seconds of the attack without anything around it, the second time."""
    from dioptra_assets.robustness.attacks import perturb_set
    from partitions.experiments import parse_experiment
    from resources.image_store import read_image_set
    from resources.models import read_model
    from resources.store import Cell, CellStore

    store = CellStore(str(root / "home" / "store"))
    document = yaml.safe_load((root / PACKAGE / "defs" / "bench" / "defs.yaml").read_text())
    spec = parse_experiment("bench", document["attributes"])
    testing_set = read_image_set(store.open(Cell("bench/testing_set")))
    seconds = {}
    for architecture in spec.architectures:
        model = read_model(store.open(Cell("bench/model", {"architecture": architecture})))
        for _ in range(2):
            for name, attack in spec.attacks.items():
                begin = time.perf_counter()
                list(perturb_set(attack, model, testing_set, seed=0, class_count=10))
                seconds[architecture, name] = time.perf_counter() - begin
    return seconds


def _versions(root: Path) -> dict[tuple[str, str], str]:
    from resources.store import CellStore

    store = CellStore(str(root / "home" / "store"))
    asset = "bench/adversarial_set"
    found = [cell for cell in store.cells(asset) if cell.asset == asset]
    return {
        (cell.partition["architecture"], cell.partition["attack"]): store.open(cell).manifest.data_version
        for cell in found
    }


def _forget(root: Path, cells: list[tuple[str, str]]) -> None:
    for cell in cells:
        shutil.rmtree(root.joinpath("home", "store", "bench", "adversarial_set", *cell))


if __name__ == "__main__":
    main()
