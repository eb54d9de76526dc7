"""What a cell costs beside its computation: 20 FGM cells in one run, against the attack alone on the same images."""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.measure import keep

EXPERIMENT = {
    "data": {"source": "digits"},
    "architectures": {"shallow_net": {"epochs": 5}, "le_net": {"epochs": 1}},
    "attacks": {"fgm": {"eps": [0.02, 0.04, 0.06, 0.08, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3]}},
}


def main() -> None:
    """Print and keep the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DAGSTER_HOME"] = folder
        keep("cells", _table(Path(folder)))


def _table(folder: Path) -> str:
    import dagster as dg

    from dioptra_assets.experiment import experiment_assets
    from dioptra_assets.launch import materialize_experiment
    from dioptra_assets.robustness.attacks import perturb_set
    from partitions.experiments import parse_experiment
    from resources.cells import Cell, CellStore
    from resources.image_store import read_image_set
    from resources.models import read_model
    from resources.store import StoreResource
    from resources.tracking import Tracking

    spec = parse_experiment("bench", EXPERIMENT)
    store = CellStore(str(folder / "store"))
    tracking = Tracking(
        mlflow_tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=str(folder / "artifacts")
    )
    defs = dg.Definitions(
        experiment_assets(spec), resources={"store": StoreResource(url=store.url), "tracking": tracking}
    )
    started: dict[str, float] = {}

    def begun(line: str) -> None:
        started[line] = time.perf_counter()  # the lines of the log arrive as each asset begins

    with dg.DagsterInstance.local_temp(str(folder)) as instance:
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
    rows = [
        f"| `{name.removeprefix('bench/')}`, {cells} cells | {seconds[name]:.1f} s | {seconds[name] / cells:.2f} s |"
        for name in ("bench/adversarial_set", "bench/evasion_examples", "bench/evasion_metrics")
    ]
    rows.append(f"| the {cells} attacks alone, same process | {alone:.1f} s | {alone / cells:.2f} s |")
    over = (seconds["bench/adversarial_set"] - alone) / cells
    rows.append(f"| an adversarial set, beside its computation | | {over:.2f} s |")
    return "\n".join(["| work | all | a cell |", "|---|---|---|", *rows])


if __name__ == "__main__":
    main()
