"""Dagster's own ways of loading, `AssetIn` and `load_asset_value`: they give what `da.load` gives.

Why: docs/decisions/0003-assets-write-through-the-store.md
"""

import functools
from collections.abc import Mapping
from typing import Any, get_origin

import dagster as dg

from dioptra_assets.assets.boundary import IO_MANAGER
from dioptra_assets.assets.cell_context import DIMENSIONS
from dioptra_assets.assets.python_values import value_of
from partitions.keys import partition_of
from resources.store import Cell, CellStore


class StoredCells(dg.ConfigurableIOManager):
    """Loads what the assets of an experiment have stored, as `da.load` does; they store it themselves.

    An input of several partitions, or of a partitioned asset to one that is not, is a dictionary by partition key; so
    is one whose type is `dict`. A cell that is missing is an error, unless the metadata of the input has
    `allow_missing_partitions`.

    Attributes:
        url: the store, as in `StoreResource`.
    """

    url: str

    def load_input(self, context: dg.InputContext) -> Any:
        """The value of an asset, or of its partitions.

        Raises:
            MissingCellError: naming the cell and the command that makes it.
            DamagedCellError: when what is stored is not what was written.
        """
        store, asset = CellStore(self.url), "/".join(context.asset_key.path)
        if not context.has_asset_partitions:
            return value_of(store.open(Cell(asset)))
        dimensions = tuple(_metadata(context)[DIMENSIONS])
        keys = list(context.asset_partition_keys)
        cells = {key: Cell(asset, partition_of(dimensions, key)) for key in keys}
        typed = context.dagster_type.typing_type
        if len(keys) == 1 and context.has_partition_key and (get_origin(typed) or typed) not in (dict, Mapping):
            return value_of(store.open(cells[keys[0]]))
        may_be_missing = (context.definition_metadata or {}).get("allow_missing_partitions")
        look = functools.partial(store.find, check=True) if may_be_missing else store.open
        found = {key: look(cell) for key, cell in cells.items()}
        return {key: value_of(stored) for key, stored in found.items() if stored}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Nothing: a cell was stored and reported as it ended.

        Raises:
            TypeError: for an asset of somebody else that names this manager.
        """
        if obj is not None:
            raise TypeError(
                f"{'/'.join(context.asset_key.path)}: the resource {IO_MANAGER!r} loads the cells of experiments and"
                " stores nothing; leave out io_manager_key"
            )


def _metadata(context: dg.InputContext) -> Mapping[str, Any]:
    upstream = context.upstream_output
    metadata = upstream.definition_metadata if upstream else None
    return metadata or {}
