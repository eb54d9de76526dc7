"""Looking closer in a notebook: pictures with labels and confidences, and two models side by side."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dioptra_assets.api.loading import load
from dioptra_assets.robustness.evaluation.comparison import COMPARISON_COLUMNS, compare_images, compare_rates
from dioptra_assets.robustness.image_set import ImageSet
from partitions.attacks import Family
from partitions.experiments import BRANCH
from partitions.keys import ARCHITECTURE, ATTACK
from resources import settings
from resources.store import Cell, CellStore
from resources.tables import read_table

# Of metric tables: the columns that tell rows apart, and the rates that are read first.
WHOSE = (ARCHITECTURE, "model_kind", "source", ATTACK, "target", "defence", "adaptive", "n")
TOLD = ("clean_accuracy", "robust_accuracy", "asr", "ra")


@dataclass(frozen=True)
class Picture:
    """A PNG that shows itself in a notebook.

    Attributes:
        png: its bytes.
    """

    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png


def compare(experiment: str, first: str, second: str, *, attack: str | None = None) -> pd.DataFrame:
    """Compare two models under the attacks of an experiment. Each model is attacked directly.

    Args:
        experiment: its name.
        first: an architecture key, or `NAME@VERSION` of a registered model.
        second: another.
        attack: an attack key; the answer is then image by image.

    Returns:
        One row per attack that was evaluated on both: `attack`, `n`, `first`, `second`, `difference` with its paired
        95 % interval `low` to `high`, `first_only`, `second_only` and `p_value` (McNemar). With `attack`, one row per
        image.

    Raises:
        LookupError: when a model has no results, or no attack was evaluated on both.
    """
    if attack is not None:
        return compare_images(_examples(experiment, first, attack), _examples(experiment, second, attack))
    shared = [attack for attack in _attacks(experiment, first) if attack in set(_attacks(experiment, second))]
    if not shared:
        raise LookupError(f"{experiment}: no attack has been evaluated on both {first!r} and {second!r}")
    rows = [
        compare_rates(key, compare_images(_examples(experiment, first, key), _examples(experiment, second, key)))
        for key in shared
    ]
    return pd.DataFrame(rows, columns=[*COMPARISON_COLUMNS])


def metrics(experiment: str, *, family: Family = "evasion", **partition: str) -> pd.DataFrame:
    """The metric table of an experiment, the most important columns only; `da.load` gives all of them.

    Args:
        experiment: its name.
        family: of the attacks: `evasion`, `poisoning` or `inversion`.
        partition: dimension -> key, to keep only those rows.

    Returns:
        One row per model, attack, target and defence: the names that identify it, `n`, and the rates with their 95 %
        intervals, `_low` to `_high`.

    Raises:
        MissingCellError: when there is no such table.
    """
    table = load(f"{experiment}/{family}_metrics", **partition)
    rates = [rate for rate in TOLD if rate in table]
    told = [f"{rate}{bound}" for rate in rates for bound in ("", "_low", "_high")] if rates else list(table)
    return table[[name for name in (*WHOSE, *told) if name in table]]


def history(experiment: str, image_id: str) -> pd.DataFrame:
    """Everything that was done to one image: one row per attack, source, target and defence.

    Args:
        experiment: its name.
        image_id: as in the testing set.

    Raises:
        LookupError: when no stored example table has that image.
    """
    tables: list[pd.DataFrame] = []
    for asset in ("evasion_examples", f"{BRANCH}/evasion_examples"):
        for cell in _store().cells(f"{experiment}/{asset}"):
            table = load(cell.asset, **cell.partition)
            tables.append(table[table["image_id"] == image_id].drop(columns="adversarial_probabilities"))
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if rows.empty:
        raise LookupError(f"{experiment}: no attacked image {image_id!r}; ids are those of the testing set")
    return rows


def show(asset: str, *, images: int = 10, only: str = "all", **partition: str) -> Picture:
    """A few images of a stored set with their labels. For an adversarial set: clean, attacked and the difference.

    Args:
        asset: key of an image set, e.g. `digits/adversarial_set`.
        images: how many, at least 1.
        only: for an adversarial set: `all`, `fooled` or `held`.
        partition: dimension -> key.

    Raises:
        LookupError: when no image fits `only`.
        TypeError: when the asset is not an image set.
        ValueError: for an unknown `only`.
    """
    from dioptra_assets.robustness.reporting.plots import comparison_grid, image_grid

    image_set = load(asset, **partition)
    if not isinstance(image_set, ImageSet):
        raise TypeError(f"{asset} is not an image set but a {type(image_set).__name__}: name an image set")
    names = image_set.class_names
    if not asset.endswith("/adversarial_set"):
        rows = np.arange(min(images, len(image_set)))
        labels: list[int] = image_set.labels[rows].tolist()
        titles = [names[label] for label in labels]
        return Picture(image_grid(image_set.images(rows), titles))
    examples = load(asset.removesuffix("adversarial_set") + "evasion_examples", **partition)
    attacked: Any = examples[(examples["target"] == examples["source"]) & (examples["defence"] == "none")]
    wrong = (attacked["adversarial_prediction"] != attacked["label"]).to_numpy(bool)
    kept = {"all": np.ones(len(attacked), bool), "fooled": wrong, "held": ~wrong}
    if only not in kept:
        raise ValueError(f"only: {only!r} is not allowed, available: {', '.join(kept)}")
    rows = np.flatnonzero(kept[only])[:images]
    if not len(rows):
        raise LookupError(f"{asset}: no image is {only}")
    shown = attacked.iloc[rows]
    titles = [
        f"{names[row['clean_prediction']]} {row['clean_confidence']:.0%} → "
        f"{names[row['adversarial_prediction']]} {row['adversarial_confidence']:.0%}"
        for _, row in shown.iterrows()
    ]
    clean = load(f"{asset.partition('/')[0]}/testing_set")
    return Picture(comparison_grid(clean.images(rows), image_set.images(rows), titles))


def _store() -> CellStore:
    return CellStore(settings.store_url())


def _asset(experiment: str, model: str) -> str:
    return f"{experiment}/{BRANCH}/evasion_examples" if "@" in model else f"{experiment}/evasion_examples"


def _attacks(experiment: str, model: str) -> list[str]:
    asset = _asset(experiment, model)
    attacks = [cell.partition[ATTACK] for cell in _store().cells(asset) if cell.partition.get(ARCHITECTURE) == model]
    if not attacks:
        raise LookupError(f"no cell of {asset} with architecture {model!r} has been materialized")
    return attacks


def _examples(experiment: str, model: str, attack: str) -> pd.DataFrame:
    store, cell = _store(), Cell(_asset(experiment, model), {ARCHITECTURE: model, ATTACK: attack})
    return read_table(store.open(cell))
