"""What single jobs make beside the assets of any experiment: any defence over any set, any model on any set."""

import dagster as dg

from dioptra_assets.assets.cells import CellContext, CellResult, cell_asset, every
from dioptra_assets.assets.defended_sets import defend_cell
from dioptra_assets.assets.models import CLEAN_PREDICTION_COLUMNS, GPU_POOL, predict_set
from dioptra_assets.robustness.image_set import ImageSet
from partitions.attacks import by_method
from partitions.defences import DEFENCES
from partitions.dynamic_keys import KeyedConfigs
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK, DEFENCE, IMAGE_SET
from resources.image_store import read_image_set

# The sets that a key can name, and the dimensions of each.
SETS: dict[str, tuple[str, ...]] = {
    "training_set": (),
    "testing_set": (),
    "adversarial_set": (ARCHITECTURE, ATTACK),
    "poisoned_training_set": (ATTACK,),
    "triggered_testing_set": (ATTACK,),
    "inverted_set": (ARCHITECTURE, ATTACK),
    "defended_set": (DEFENCE, IMAGE_SET),
}
SEPARATOR = "--"


def set_key(asset: str, *keys: str) -> str:
    """The key that names a stored set: `adversarial_set--le_net--fgm@eps=0.3`."""
    return SEPARATOR.join([asset, *keys])


def set_of(key: str) -> tuple[str, dict[str, str]]:
    """The asset and partition that a key names.

    Raises:
        ValueError: when it names none.
    """
    asset, *keys = key.split(SEPARATOR)
    dimensions = SETS.get(asset, ())
    if asset == "defended_set" and len(keys) > 1:
        keys = [keys[0], SEPARATOR.join(keys[1:])]  # the set that was defended has a key of its own
    if asset not in SETS or len(keys) != len(dimensions):
        raise ValueError(f"{key!r} names no stored set: write {SEPARATOR.join(['adversarial_set', 'MODEL', 'ATTACK'])}")
    return asset, dict(zip(dimensions, keys, strict=True))


def workbench_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`defended_set` by defence and image set, and `predictions` by architecture and image set."""
    defences = KeyedConfigs("defence", by_method(DEFENCES))
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
            description="What any model says of every image of any stored set.",
            dimensions=(ARCHITECTURE, IMAGE_SET),
            deps=["model", every(spec, "defended_set"), *sets],
            kinds={"pandas"},
            columns=CLEAN_PREDICTION_COLUMNS,
            pool=GPU_POOL,
            params=dict,
        ),
    ]


def _read_set(cell: CellContext) -> ImageSet:
    asset, partition = set_of(cell.cell.partition[IMAGE_SET])
    return read_image_set(cell.read(asset, **partition))
