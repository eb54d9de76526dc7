"""Cells of a registered version that equal bytes were attacked for before: taken over, not computed anew.

A version is its bytes. What a cell was made from is written beside it as one hash, its recipe: the content of the model
and of every other input, and no version's number. A cell of another version with this recipe holds the same numbers.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dagster as dg

from dioptra_assets.dagster_internals import DATA_VERSION_TAG
from partitions.keys import ARCHITECTURE, ATTACK
from resources.store import Cell, DamagedCellError, StoredCell, sha256

if TYPE_CHECKING:
    from dioptra_assets.assets.cell_context import CellContext

RECIPE = "recipe"
Inputs = Mapping[str, tuple[str, ...]]  # asset -> the dimensions it shares with the cell


def recipe_of(cell: "CellContext", inputs: Inputs, code_version: str) -> str:
    """What a cell is made from, as one hash that names no version."""
    partition = cell.cell.partition
    made_from: dict[str, Any] = {}
    for asset, dimensions in inputs.items():
        shared = {dimension: partition[dimension] for dimension in dimensions if dimension in partition}
        if len(shared) == len(dimensions):
            made_from[asset] = cell.read(asset, **shared).manifest.data_version
        else:  # made from what there is under any attack
            found, _ = cell.present(asset, [{**shared, ATTACK: attack} for attack in cell.spec.attacks])
            made_from[asset] = {one.cell.partition[ATTACK]: one.manifest.data_version for one in found}
    facts = [cell.cell.asset, code_version, cell.spec.seed, partition.get(ATTACK), made_from]
    return sha256(json.dumps(facts, sort_keys=True).encode())


def twin_of(cell: "CellContext", recipe: str, instance: dg.DagsterInstance) -> StoredCell | None:
    """The cell of another version that was made from the same, whole and unaltered; None where there is none."""
    model = cell.input_cell("model", **{ARCHITECTURE: cell.cell.partition[ARCHITECTURE]})
    versions = instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey(model.asset.split("/")), dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    own = cell.read("model", **model.partition).manifest.data_version
    for version, tags in versions.items():
        if version == model.partition[ARCHITECTURE] or tags.get(DATA_VERSION_TAG) != own:
            continue
        stored = cell.store.find(Cell(cell.cell.asset, {**cell.cell.partition, ARCHITECTURE: version}))
        if stored and stored.manifest.attributes.get(RECIPE) == recipe:
            with suppress(DamagedCellError):
                stored.verify()
                return stored
    return None


def copy(cell: "CellContext", twin: StoredCell, **attributes: Any) -> StoredCell:
    """Serve the content of another cell as that of this one.

    Args:
        cell: this one.
        twin: the other.
        attributes: what differs from the attributes of the other.
    """
    with cell.destination.writer(twin.manifest.kind) as writer:
        for name in twin.manifest.files:
            writer.put(name, twin.read(name))
        return writer.commit(twin.manifest.data_version, {**twin.manifest.attributes, **attributes})
