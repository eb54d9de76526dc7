"""What single jobs make beside the assets of any experiment: any defence over any set, any model on any set."""

import dagster as dg

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult, every
from dioptra_assets.assets.defended_sets import defend_cell
from dioptra_assets.assets.keyed_configs import kept_config
from dioptra_assets.assets.models import CLEAN_PREDICTION_COLUMNS, GPU_POOL, predict_set
from dioptra_assets.robustness.image_set import ImageSet
from partitions.attacks import by_method
from partitions.defences import DEFENCES
from partitions.dynamic_keys import KeyedConfigs, is_short, looked_up
from partitions.experiments import ExperimentSpec
from partitions.image_sets import SETS, set_of
from partitions.keys import ARCHITECTURE, ATTACK, DEFENCE, IMAGE_SET
from resources.image_store import read_image_set


def workbench_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`defended_set` by defence and image set, and `predictions` by architecture and image set."""
    defences = KeyedConfigs("defence", by_method(DEFENCES), lambda key: kept_config(spec.name, key))
    sets = ["testing_set", *(every(spec, asset) for asset, dimensions in SETS.items() if ATTACK in dimensions)]

    def defend(cell: CellContext) -> CellResult:
        return defend_cell(cell, defences[cell.cell.partition[DEFENCE]], _read_set(cell))

    def predict(cell: CellContext) -> CellResult:
        model = cell.read("model", **{ARCHITECTURE: cell.cell.partition[ARCHITECTURE]})
        return predict_set(cell, model, _read_set(cell))

    return [
        cell_asset(
            spec,
            "defended_set",
            defend,
            description="Any stored set behind any preprocessing defence.",
            dimensions=(DEFENCE, IMAGE_SET),
            deps=sets,
            kinds={"numpy"},
            params=dict,
        ),
        cell_asset(
            spec,
            "predictions",
            predict,
            description="Predictions of any model on every image of any stored set.",
            dimensions=(ARCHITECTURE, IMAGE_SET),
            deps=["model", every(spec, "defended_set"), *sets],
            kinds={"pandas"},
            columns=CLEAN_PREDICTION_COLUMNS,
            pool=GPU_POOL,
            params=dict,
        ),
    ]


def _read_set(cell: CellContext) -> ImageSet:
    key = cell.cell.partition[IMAGE_SET]
    if is_short(key):
        kept = looked_up(key, lambda short: kept_config(cell.spec.name, short), f"image_set key {key!r}")
        asset, partition = kept["asset"], kept["partition"]
    else:
        asset, partition = set_of(key)
    return read_image_set(cell.read(asset, **partition))
