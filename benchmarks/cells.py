"""What a cell costs beside its computation: 20 FGM cells in one run, against the attack alone on the same images."""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Pair

EXPERIMENT = {
    "data": {"source": "digits"},
    "architectures": {"shallow_net": {"epochs": 5}, "le_net": {"epochs": 1}},
    "attacks": {"fgm": {"eps": [0.02, 0.04, 0.06, 0.08, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3]}},
}
QUICK = EXPERIMENT | {"architectures": {"shallow_net": {"epochs": 1}}, "attacks": {"fgm": {"eps": [0.1, 0.2]}}}


def rows(quick: bool = False) -> list[Pair]:
    """What was measured."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DAGSTER_HOME"] = folder
        return _rows(Path(folder), quick)


def _rows(folder: Path, quick: bool) -> list[Pair]:
    import dagster as dg

    from dioptra_assets.assets.cells import IO_MANAGER
    from dioptra_assets.assets.io_manager import StoredCells
    from dioptra_assets.experiment import experiment_assets
    from dioptra_assets.launch import materialize_experiment
    from dioptra_assets.robustness.attacks import perturb_set
    from partitions.experiments import parse_experiment
    from resources import home
    from resources.cells import Cell, CellStore
    from resources.image_store import read_image_set
    from resources.models import read_model
    from resources.store import StoreResource
    from resources.tracking import Tracking

    spec = parse_experiment("bench", QUICK if quick else EXPERIMENT)
    store = CellStore(str(folder / "store"))
    tracking = Tracking(
        mlflow_tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=str(folder / "artifacts")
    )
    defs = dg.Definitions(
        experiment_assets(spec),
        resources={
            "store": StoreResource(url=store.url),
            "tracking": tracking,
            IO_MANAGER: StoredCells(url=store.url),
        },
    )
    started: dict[str, float] = {}

    def begun(line: str) -> None:
        started[line] = time.perf_counter()  # the lines of the log arrive as each asset begins

    with home.instance() as instance:
        materialize_experiment(defs, "bench", instance=instance, store=store, log=begun)
    ends = [*list(started.values())[1:], time.perf_counter()]
    seconds = {line.split(":")[0]: end - begin for (line, begin), end in zip(started.items(), ends, strict=True)}
    testing_set = read_image_set(store.open(Cell("bench/testing_set")))
    begin = time.perf_counter()
    for attack in spec.attacks.values():
        for architecture in spec.architectures:
            model = read_model(store.open(Cell("bench/model", {"architecture": architecture})))
            list(perturb_set(attack, model, testing_set, seed=0, class_count=10))
    alone = time.perf_counter() - begin
    cells = len(spec.attacks) * len(spec.architectures)
    named = f"{cells} FGM cells of digits"
    return [
        _pair(f"{named}: the adversarial sets, against their attacks alone", alone, seconds["bench/adversarial_set"]),
        _pair(
            f"{named}: from the adversarial sets to metrics, against their attacks alone",
            alone,
            seconds["bench/evasion_examples"] + seconds["bench/evasion_metrics"],
        ),
    ]


def _pair(name: str, alone: float, ours: float) -> Pair:
    return Pair(name, alone, ours, alone / ours)
