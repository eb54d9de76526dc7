"""What a cell costs beside its computation: 20 FGM cells in one run, against the same functions called one by one.

In seconds of CPU, of all threads: what else runs on the machine changes them less than the time that passes.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.measure import Pair

if TYPE_CHECKING:
    from partitions.experiments import ExperimentSpec
    from resources.store import CellStore

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

    from dioptra_assets.assets.boundary import IO_MANAGER
    from dioptra_assets.assets.io_manager import StoredCells
    from dioptra_assets.experiment import experiment_assets
    from dioptra_assets.runs.launch import materialize_experiment
    from partitions.experiments import parse_experiment
    from resources.instance import home_instance
    from resources.store import CellStore, StoreResource
    from resources.tracking.resource import Tracking

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
        started[line] = time.process_time()  # the lines of the log arrive as each asset begins

    with home_instance() as instance:
        materialize_experiment(defs, "bench", instance=instance, store=store, log=begun)
    ends = [*list(started.values())[1:], time.process_time()]
    seconds = {line.split(":")[0]: end - begin for (line, begin), end in zip(started.items(), ends, strict=True)}
    attacks, numbers = _alone(spec, store)
    cells = len(spec.attacks) * len(spec.architectures)
    named = f"{cells} FGM cells of digits, in seconds of CPU"
    sets, tables = (
        seconds["bench/adversarial_set"],
        seconds["bench/evasion_examples"] + seconds["bench/evasion_metrics"],
    )
    beside = (sets + tables - attacks - numbers) / cells
    return [
        _pair(f"{named}: the adversarial sets, against their attacks alone", attacks, sets),
        _pair(f"{named}: from the adversarial sets to metrics, against predictions and rates alone", numbers, tables),
        _pair(f"{named}: all of it; {beside:.2f} s a cell beside what is computed", attacks + numbers, sets + tables),
    ]


def _alone(spec: "ExperimentSpec", store: "CellStore") -> tuple[float, float]:
    """What the attacks take, and what predictions, distances and rates take, without anything around them."""
    from dioptra_assets.robustness.attacks import perturb_set
    from dioptra_assets.robustness.evaluation.distances import set_distances
    from dioptra_assets.robustness.evaluation.examples import RowKey, example_table
    from dioptra_assets.robustness.evaluation.metrics import metric_table
    from dioptra_assets.robustness.evaluation.predictions import predict
    from dioptra_assets.robustness.image_set import ImageSet
    from dioptra_assets.robustness.model_files.files import load_model
    from resources.image_store import read_often
    from resources.models import MODEL
    from resources.store import Cell

    testing_set, models = read_often(store.open(Cell("bench/testing_set"))), {}
    classes = len(testing_set.class_names)
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for architecture in spec.architectures:  # loaded and compiled anew, as the run did
            path = Path(folder, MODEL)
            path.write_bytes(store.open(Cell("bench/model", {"architecture": architecture})).read(MODEL))
            models[architecture] = load_model(path)
    made = {
        (source, key): list(perturb_set(attack, model, testing_set, seed=0, class_count=classes))
        for key, attack in spec.attacks.items()
        for source, model in models.items()
    }
    attacked = time.process_time()
    clean = {target: predict(model, testing_set) for target, model in models.items()}
    begin_numbers = time.process_time()
    for (source, key), batches in made.items():
        adversarial_set = ImageSet(
            np.concatenate([batch.images for batch in batches]), testing_set.index, testing_set.class_names
        )
        distances = set_distances(testing_set, adversarial_set)
        tables = [
            example_table(
                RowKey(source, key, target),
                clean=clean[target],
                adversarial=predict(model, adversarial_set),
                distances=distances,
            )
            for target, model in models.items()
        ]
        metric_table(pd.concat(tables, ignore_index=True), class_names=testing_set.class_names, seed=0)
    return attacked - begin, time.process_time() - begin_numbers


def _pair(name: str, alone: float, ours: float) -> Pair:
    return Pair(name, alone, ours, alone / ours)
