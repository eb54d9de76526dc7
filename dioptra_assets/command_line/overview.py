"""Every asset of the experiments, with the state of its cells: up to date, stale or missing."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dioptra_assets.broken_experiments import mistakes, refuse_broken
from dioptra_assets.dagster_internals import partition_loading_context
from dioptra_assets.definitions import defs
from dioptra_assets.runs.launch import UnknownExperimentError, cells_of, to_compute
from resources import settings
from resources.instance import home_instance
from resources.store import CellStore

State = Literal["up to date", "stale", "missing"]


@dataclass(frozen=True)
class AssetOverview:
    """One asset.

    Attributes:
        asset: its key with slashes.
        states: path of each cell -> its state.
        mistake: what is wrong with the experiment file, if it could not be loaded.
    """

    asset: str
    states: Mapping[str, State]
    mistake: str = ""


def assets(experiment: str | None = None) -> list[AssetOverview]:
    """Every asset of one experiment, or of all experiments, in graph order.

    Raises:
        ExperimentError: the file of the given experiment is wrong.
        UnknownExperimentError: there is no such experiment.
    """
    store, listed = CellStore(settings.store_url()), []
    with warnings.catch_warnings(), home_instance() as instance, partition_loading_context(None, instance):
        warnings.simplefilter("ignore")
        graph = defs().resolve_asset_graph()
        broken = mistakes(graph)
        refuse_broken(graph, experiment or "")
        keys = [key for level in graph.toposorted_asset_keys_by_level for key in sorted(level)]
        known = sorted({key.path[0] for key in keys})
        if experiment is not None and experiment not in known:
            raise UnknownExperimentError(f"there is no experiment {experiment!r}, available: {', '.join(known)}")
        for key in keys:
            if experiment not in (None, key.path[0]):
                continue
            if key.path[0] in broken:
                listed.append(AssetOverview(key.to_user_string(), {}, broken[key.path[0]]))
            elif graph.get(key).is_materializable:  # verdicts on registered versions are reported, not computed
                cells = cells_of(graph, key, None)
                due = to_compute(graph, key, cells, instance, store).values()
                stored = store.found(list(due))
                states: dict[str, State] = {cell.path: "up to date" for cell in cells.values()}
                states |= {cell.path: "stale" if cell in stored else "missing" for cell in due}
                listed.append(AssetOverview(key.to_user_string(), states))
    return sorted(listed, key=lambda overview: overview.asset.partition("/")[0])


def counted(assets: Sequence[AssetOverview], *, by_experiment: bool) -> dict[str, Counter[str]]:
    """Number of cells by name and state. The name is the asset's, or the experiment's."""
    counts: dict[str, Counter[str]] = {}
    for overview in assets:
        name = overview.asset.partition("/")[0] if by_experiment else overview.asset
        counts.setdefault(name, Counter()).update(overview.states.values())
    return counts
