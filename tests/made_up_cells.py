"""An experiment whose cells are made up in no time, for tests of what leads them: `made_up`, eight cells."""

import dagster as dg

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult
from dioptra_assets.definitions import resource_definitions
from partitions.experiments import parse_experiment
from resources.documents import write_config

CELLS = 8


def defs() -> dg.Definitions:
    """Two models, two attacks on each."""
    attacks = {"weak": {"method": "fgm", "eps": 0.1}, "strong": {"method": "fgm", "eps": 0.3}}
    architectures = {"le_net": {"epochs": 1}, "shallow_net": {"epochs": 1}}
    spec = parse_experiment(
        "made_up", {"seed": 1, "data": {"source": "digits"}, "architectures": architectures, "attacks": attacks}
    )

    def asset(name: str, dimensions: tuple[str, ...] = (), deps: tuple[str, ...] = ()) -> dg.AssetsDefinition:
        pool = "gpu" if dimensions else None
        return cell_asset(
            spec, name, _compute, description=name, dimensions=dimensions, deps=deps, kinds=set(), pool=pool
        )

    assets = [
        asset("testing_set"),
        asset("training_set"),
        asset("model", ("architecture",), ("training_set",)),
        asset("adversarial_set", ("architecture", "attack"), ("model", "testing_set")),
    ]
    return dg.Definitions(assets=assets, resources=resource_definitions())


def _compute(cell: CellContext) -> CellResult:
    print(f"what {cell.cell} writes to stdout")
    report = cell.progress("attacked")
    for done in range(1, 5):
        report(done, 4)
    return CellResult(write_config(cell.destination, {"made": cell.cell.path}))
