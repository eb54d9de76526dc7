"""Models in the store: a `.keras` file, checked before it is loaded, and its training history."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.model_cache import Loaded
from dioptra_assets.robustness.model_files.files import load_model, save_model, weights_digest
from resources.store import Destination, StoredCell
from resources.tables import from_parquet, to_parquet

if TYPE_CHECKING:
    import keras  # pyright: ignore[reportMissingTypeStubs] - it has no types

KIND = "model"
MODEL = "model.keras"
HISTORY = "history.parquet"


def write_model(
    destination: Destination,
    model: "keras.Model",
    history: pd.DataFrame,
    *,
    attributes: Mapping[str, Any] | None = None,
) -> StoredCell:
    """Store a model; its data version is the hash of its architecture and weights.

    Raises:
        NonFiniteError: when a weight is NaN or infinite.
    """
    weights: list[Any] = cast("Any", model).weights
    broken = [str(weight.path) for weight in weights if not np.isfinite(np.asarray(weight)).all()]
    if broken:
        raise NonFiniteError(f"{destination.cell}: the model has non-finite weights in {', '.join(broken[:5])}")
    with destination.writer(KIND) as writer, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MODEL)
        save_model(model, path)
        writer.put(MODEL, path.read_bytes())
        writer.put(HISTORY, to_parquet(history))
        return writer.commit(weights_digest(model), attributes or {})


def read_history(stored: StoredCell) -> pd.DataFrame:
    """Loss and accuracy by epoch."""
    return from_parquet(stored.read(HISTORY))


def read_model(stored: StoredCell) -> "keras.Model":
    """The model of a cell, cached within this process."""
    return _load(_Version(stored))


class _Version:
    """A stored model as a cache key: equal where store, cell and version are."""

    def __init__(self, stored: StoredCell):
        self.stored = stored
        self.key = (stored.store.url, stored.prefix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Version) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _from_store(version: _Version) -> "keras.Model":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MODEL)
        path.write_bytes(version.stored.read(MODEL))
        return load_model(path)


_load = Loaded(_from_store)
