"""The configs behind the short keys of a dynamic experiment: whole, in the store, where every machine finds them.

A config that does not fit a partition key is kept as the cell `keyed_config` of its short key, before any cell of that
key is made. The key holds its digest: what is kept is checked each time it is looked up, and is never another.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dagster as dg

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult
from dioptra_assets.assets.config_assets import publish_config
from partitions.dynamic_keys import KeyedConfigs, looked_up
from partitions.experiments import ExperimentSpec
from partitions.keys import CONFIG_KEY
from resources import settings
from resources.documents import read_config, write_config
from resources.store import Cell, CellStore

KEYED_CONFIG = "keyed_config"


def keep_config(store: CellStore, experiment: str, key: str, document: Mapping[str, Any]) -> None:
    """Keep what a short key names, for whoever meets the key."""
    cell = Cell(f"{experiment}/{KEYED_CONFIG}", {CONFIG_KEY: key})
    if not store.find(cell):
        write_config(store.at(cell), document)


def kept_config(experiment: str, key: str) -> Mapping[str, Any] | None:
    """The JSON values that a short key names, None where they are not in the store."""
    stored = CellStore(settings.store_url()).find(Cell(f"{experiment}/{KEYED_CONFIG}", {CONFIG_KEY: key}), check=True)
    return read_config(stored) if stored else None


def knowing_kept_configs(spec: ExperimentSpec) -> ExperimentSpec:
    """A dynamic experiment whose short keys are looked up in the store."""

    def knowing(configs: Mapping[str, Any]) -> Mapping[str, Any]:
        assert isinstance(configs, KeyedConfigs)
        return replace(configs, kept=lambda key: kept_config(spec.name, key))

    return replace(
        spec,
        architectures=knowing(spec.architectures),
        attacks=knowing(spec.attacks),
        poisonings=knowing(spec.poisonings),
        inversions=knowing(spec.inversions),
    )


def keyed_config_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """`keyed_config`, by short key."""

    def compute(cell: CellContext) -> CellResult:
        key = cell.cell.partition[CONFIG_KEY]
        document = read_config(cell.store.open(cell.cell))
        looked_up(key, lambda _: document, str(cell.cell))
        return publish_config(cell, document)

    return cell_asset(
        spec,
        KEYED_CONFIG,
        compute,
        description="What each short key, `fgm@config=DIGEST`, stands for: a config or image set too long for a"
        " partition key. A job stores it before it uses the key. Materializing it again checks it.",
        dimensions=(CONFIG_KEY,),
        kinds={"yaml"},
    )
