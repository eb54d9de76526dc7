"""Which runs bring registered versions up to date: ranges of partitions of the real assets, as few as cells allow.

Dagster takes one kind of partitions a run. So the cells of a version come in stages: what is made once a model, then
what is made once a model and attack, then what looks at all attacks on a model. Whatever is missing or stale, and has
what it is made from, is asked for.

Each stage has a place at work of its own: newcomers at their first stage keep nobody from his last, and while one stage
of some versions is at work, those that wait for it gather and share the next run. In each place whoever has waited
longest is first. So no version waits for ever, however many come.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from dioptra_assets.assets.cell_context import DIMENSIONS
from dioptra_assets.dagster_internals import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from dioptra_assets.runs.staleness import stale_cells
from partitions.keys import ARCHITECTURE, ATTACK, partition_key_of
from partitions.ranges import ranges
from resources.executors.backfills import cells_per_run
from resources.store import Cell, CellStore

# A run of so many versions at most: whoever comes next waits for no more than these.
VERSIONS_PER_RUN = 100

Dimensions = tuple[str, ...]


@dataclass(frozen=True)
class Todo:
    """The cells of some assets that are missing or stale.

    Attributes:
        dimensions: asset -> its dimensions, each asset after those it is made from.
        inputs: asset -> those of the assets that it is made from.
        cells: asset -> its cells to be made.
    """

    dimensions: Mapping[dg.AssetKey, Dimensions]
    inputs: Mapping[dg.AssetKey, Sequence[dg.AssetKey]]
    cells: Mapping[dg.AssetKey, Collection[Cell]]

    def of(self, version: str, assets: Collection[dg.AssetKey]) -> bool:
        """Whether anything of a version, or of what all versions share, is to be made among some assets."""
        return any(cell.partition.get(ARCHITECTURE, version) == version for key in assets for cell in self.cells[key])


@dataclass(frozen=True)
class Wanted:
    """One run: some assets, at a range of partitions.

    Attributes:
        assets: what is materialized.
        dimensions: of the range.
        cells: the partitions, `{}` alone where there are none.
        stage: how many stages a version has behind it by then.
    """

    assets: tuple[dg.AssetKey, ...]
    dimensions: Dimensions
    cells: tuple[Mapping[str, str], ...]
    stage: int = 0

    @property
    def place(self) -> str:
        """Its place at work: runs of other places are no reason to wait."""
        return f"{' '.join(self.dimensions)} {self.stage}".strip()

    @property
    def tags(self) -> dict[str, str]:
        """What tells Dagster the range."""
        ends = [partition_key_of(self.cells[place]) for place in (0, -1)]
        names = (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
        return {name: end for name, end in zip(names, ends, strict=True) if end}


def look(
    graph: Any,
    assets: Sequence[dg.AssetKey],
    keys: Mapping[str, Sequence[str]],
    instance: dg.DagsterInstance,
    store: CellStore,
) -> Todo:
    """The cells of some versions, and of what they are made from, that are missing, stale or lost.

    Args:
        graph: the asset graph.
        assets: what is to be up to date, each after those it is made from.
        keys: dimension -> the versions, the attack keys.
        instance: where materializations are recorded.
        store: where values are kept.
    """
    dimensions: dict[dg.AssetKey, Dimensions] = {key: tuple(graph.get(key).metadata[DIMENSIONS]) for key in assets}
    cells = {}
    for key, names in dimensions.items():
        own = {_partition_key(one): Cell(key.to_user_string(), one) for one in _product(names, keys)}
        stale = stale_cells(graph, key, list(own), instance)
        held = store.found([cell for partition, cell in own.items() if partition not in stale])
        cells[key] = {cell for partition, cell in own.items() if partition in stale or cell not in held}
    inputs = {key: [parent for parent in sorted(graph.get(key).parent_keys) if parent in dimensions] for key in assets}
    return Todo(dimensions, inputs, cells)


def runs(
    todo: Todo,
    versions: Sequence[str],
    attacks: Sequence[str],
    alone: Collection[str] = (),
    due: Sequence[str] | None = None,
) -> Iterator[Wanted]:
    """The runs that can be started now, those of versions that have waited longest first.

    Args:
        todo: what is missing or stale.
        versions: every version that there is, in the order that Dagster keeps.
        attacks: every attack key, in order.
        alone: versions that are not put into a run with others.
        due: the versions, whoever has waited longest first; None where that is their order.
    """
    readiness = _Readiness(todo)
    ready = {key: {cell for cell in cells if readiness(key, cell)} for key, cells in todo.cells.items()}
    groups: dict[Dimensions, list[dg.AssetKey]] = {}
    for key, names in todo.dimensions.items():
        groups.setdefault(names, []).append(key)
    shared = tuple(key for key in groups.pop((), []) if ready[key])  # without partitions: fits any run
    stages = _stages(todo)
    found = []
    for names, assets in groups.items():
        first: dict[tuple[dg.AssetKey, str], set[Cell]] = {}
        seen: set[str] = set()
        for key in assets:
            for cell in ready[key]:
                place = "/".join(cell.partition.values())
                if place not in seen:
                    version = cell.partition.get(ARCHITECTURE, "")
                    first.setdefault((key, version if version in alone else ""), set()).add(cell)
            seen |= {"/".join(cell.partition.values()) for cell in ready[key]}
        for (key, _), cells in first.items():
            taken = tuple(asset for asset in assets[assets.index(key) :] if asset == key or _from(todo, asset, key))
            for rectangle in _rectangles(names, cells, versions, attacks):
                found.append(Wanted(taken, names, rectangle, stages[key]))
    waited = {version: number for number, version in enumerate(versions if due is None else due)}

    def turn(wanted: Wanted) -> tuple[int, int, int]:
        # What is of no version is needed by all.
        longest = min(waited.get(cell.get(ARCHITECTURE, ""), -1) for cell in wanted.cells)
        return longest, len(wanted.dimensions), wanted.stage

    for wanted in sorted(found, key=turn):
        # Where something all need is missing, the first run makes it, and the others wait for that.
        needs = [one for one in shared if any(one in todo.inputs[asset] for asset in wanted.assets)]
        yield replace(wanted, assets=(*needs, *wanted.assets))
        if needs:
            return
    if shared:
        yield Wanted(shared, (), ({},))


def _stages(todo: Todo) -> dict[dg.AssetKey, int]:
    """How many runs of other dimensions, one after another, each asset is made from."""
    stages: dict[dg.AssetKey, int] = {}
    for key, names in todo.dimensions.items():
        before = [(stages[one], todo.dimensions[one]) for one in todo.inputs[key] if todo.dimensions[one]]
        stages[key] = max((stage + (theirs != names) for stage, theirs in before), default=0)
    return stages


def _rectangles(
    names: Dimensions, cells: Collection[Cell], versions: Sequence[str], attacks: Sequence[str]
) -> Iterator[tuple[Mapping[str, str], ...]]:
    keys = {ARCHITECTURE: versions, ATTACK: attacks}
    most = cells_per_run() or VERSIONS_PER_RUN * (len(attacks) if ATTACK in names else 1)
    wanted = {tuple(cell.partition[name] for name in names) for cell in cells}
    for taken in ranges([keys[name] for name in names], wanted, most):
        yield tuple(dict(zip(names, key, strict=True)) for key in taken)


class _Readiness:
    """Whether cells can be made in a run that starts now: what each is made from is there, or made in the same run."""

    def __init__(self, todo: Todo):
        self.todo = todo
        self.known: dict[Cell, bool] = {}
        self.places: dict[tuple[dg.AssetKey, Dimensions], dict[tuple[str, ...], list[Cell]]] = {}

    def __call__(self, key: dg.AssetKey, cell: Cell) -> bool:
        if cell not in self.known:
            self.known[cell] = all(self._there(key, parent, cell) for parent in self.todo.inputs[key])
        return self.known[cell]

    def _there(self, key: dg.AssetKey, parent: dg.AssetKey, cell: Cell) -> bool:
        own, theirs = self.todo.dimensions[key], self.todo.dimensions[parent]
        shared = tuple(name for name in theirs if name in own)
        if (parent, shared) not in self.places:
            places: dict[tuple[str, ...], list[Cell]] = {}
            for one in self.todo.cells[parent]:
                places.setdefault(tuple(one.partition[name] for name in shared), []).append(one)
            self.places[parent, shared] = places
        missing = self.places[parent, shared].get(tuple(cell.partition[name] for name in shared), [])
        return not missing or (theirs in ((), own) and all(self(parent, one) for one in missing))


def _from(todo: Todo, asset: dg.AssetKey, key: dg.AssetKey) -> bool:
    """Whether an asset is made from another, and by way of assets of the same dimensions alone.

    What is made from it by way of others as well, as a model's sanity checks are, has to wait for those.
    """
    parents = [one for one in todo.inputs[asset] if one == key or _above(todo, one, key)]
    own = todo.dimensions[asset]
    return bool(parents) and all(
        todo.dimensions[one] == own and (one == key or _from(todo, one, key)) for one in parents
    )


def _above(todo: Todo, asset: dg.AssetKey, key: dg.AssetKey) -> bool:
    """Whether an asset is made from another, by whatever way."""
    return key in todo.inputs[asset] or any(_above(todo, parent, key) for parent in todo.inputs[asset])


def _partition_key(partition: Mapping[str, str]) -> str | None:
    """As Dagster has it, which maps keys of two dimensions by their parts."""
    return dg.MultiPartitionKey(partition) if len(partition) > 1 else partition_key_of(partition)


def _product(names: Dimensions, keys: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{}]
    for name in names:
        found = [{**one, name: key} for one in found for key in keys[name]]
    return found
