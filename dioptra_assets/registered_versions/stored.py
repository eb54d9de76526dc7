"""What the store has of a registered version, and serving none of it any more."""

from collections.abc import Iterable
from datetime import datetime

import dagster as dg
import obstore

from dioptra_assets.assets.cell_context import asset_key
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE
from resources.store import Cell, CellStore, StoredCell


def _model(branch: ExperimentSpec, store: CellStore, version: str) -> StoredCell | None:
    return store.find(Cell(asset_key(branch, "model").to_user_string(), {ARCHITECTURE: version}))


def digest_of(branch: ExperimentSpec, store: CellStore, version: str) -> str:
    """SHA-256 of the model file that was fetched; empty where none was."""
    found = _model(branch, store, version)
    return str(found.manifest.attributes.get("sha256", "")) if found else ""


def registered_at(branch: ExperimentSpec, store: CellStore, version: str) -> int | None:
    """When the model that is stored under a version was registered, in ms since 1970; None where none is stored."""
    found = _model(branch, store, version)
    registered = found.manifest.attributes.get("registered") if found else None
    return round(datetime.fromisoformat(registered).timestamp() * 1000) if registered else None


def forget(assets: Iterable[dg.AssetKey], store: CellStore, version: str) -> None:
    """Serve nothing any more that was made of another model under the same number.

    Args:
        assets: those of the branch of registered models.
        store: where cells are.
        version: `NAME@VERSION`.
    """
    for asset in assets:
        prefix = f"{asset.to_user_string()}/{version}"
        pointers = [path for path in store.sizes(prefix) if path.rsplit("/", 1)[-1] == "CURRENT"]
        if pointers:
            obstore.delete(store.objects, [f"{prefix}/{path}" for path in pointers])
