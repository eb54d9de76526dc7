"""Keeping house: looking at every byte of a store, tidying it, and copying a home while it is in use."""

import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from resources.store import (
    A_MANIFEST,
    CURRENT,
    IN_A_VERSION,
    KEEP_SUPERSEDED,
    Cell,
    CellStore,
    DamagedCellError,
    Manifest,
    StoreError,
    sha256,
)
from resources.tracking.backlog import copy_backlog

if TYPE_CHECKING:
    import dagster as dg

# Where an embedded home keeps SQLite databases, and what else of it is worth keeping.
DATABASES = ("history", "schedules", "mlflow")
FILES = ("dagster.yaml",)


class BackupError(RuntimeError):
    """A home cannot be copied there, or not by this command."""


@dataclass
class Verified:
    """What a look at every byte of a store has found.

    Attributes:
        cells: how many are served, whole.
        versions: how many versions were looked at, superseded ones too.
        size: bytes that were read.
        faults: a sentence for each cell or version that is not what was written.
        damaged: folders of the cells that are served and are not what was written.
    """

    cells: int = 0
    versions: int = 0
    size: int = 0
    faults: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def verify_store(store: CellStore, prefix: str = "") -> Verified:
    """Compare every byte below a prefix with the manifests, of what is served and of what was superseded."""
    found = Verified()
    pointers, versions = _listed(store, prefix)
    served = set()
    for folder in sorted(pointers | versions.keys()):
        if folder not in pointers and not any(versions[folder].values()):
            continue  # of a writer that was killed, or is at work: nobody was ever led to it
        try:
            stored = store.open_folder(folder)
            stored.verify()
            served.add((folder, stored.version))
            found.cells += 1
            found.size += sum(record.size for record in stored.manifest.files.values())
        except DamagedCellError as error:
            found.faults.append(str(error))
            found.damaged.append(folder)
        except StoreError as error:
            found.faults.append(str(error))
    for folder, names in versions.items():
        for version, whole in names.items():
            found.versions += whole
            if whole and (folder, version) not in served and folder in {one for one, _ in served}:
                found.faults += _superseded_faults(store, folder, version, found)
    return found


def withdraw(store: CellStore, found: Verified) -> None:
    """Serve what is damaged no more: `materialize` computes it again. Its files stay until a later version is there."""
    for folder in found.damaged:
        store.forget(Cell(folder))


def _listed(store: CellStore, prefix: str) -> tuple[set[str], dict[str, dict[str, bool]]]:
    """The folders with a pointer; and folder -> version -> whether there is a manifest of it."""
    pointers: set[str] = set()
    versions: dict[str, dict[str, bool]] = {}
    for path in store.sizes_below(prefix):
        if found := IN_A_VERSION.match(path):
            version = found["name"].partition("/")[0]
            whole = bool(A_MANIFEST.fullmatch(found["name"]))
            of_cell = versions.setdefault(found["folder"], {})
            of_cell[version] = of_cell.get(version, False) or whole
        elif path.endswith(f"/{CURRENT}"):
            pointers.add(path.removesuffix(f"/{CURRENT}"))
    return pointers, versions


def _superseded_faults(store: CellStore, folder: str, version: str, found: Verified) -> Iterator[str]:
    where = f"{folder}/versions/{version}"
    try:
        manifest = Manifest.model_validate_json(store.get(f"{where}/manifest.json") or b"")
    except ValidationError:
        yield f"{where}/manifest.json, of a superseded version, was altered or lost"
        return
    for name, record in manifest.files.items():
        content = store.get(f"{where}/{name}")
        if content is None or (len(content), sha256(content)) != (record.size, record.sha256):
            yield f"{where}/{name}, of a superseded version, was altered or lost"
        found.size += record.size


@dataclass
class Rubbish:
    """What :func:`clean` may remove.

    Attributes:
        cells: of entries that no experiment file declares any more.
        versions: (folder of a cell, version) that is not served and is older than readers need.
        mlflow_runs: ids of MLflow runs of cells that are not stored.
        dagster_runs: ids of old Dagster runs that failed or were cancelled and made nothing.
        size: bytes in the store.
    """

    cells: list[Cell] = field(default_factory=list)
    versions: list[tuple[str, str]] = field(default_factory=list)
    mlflow_runs: list[str] = field(default_factory=list)
    dagster_runs: list[str] = field(default_factory=list)
    size: int = 0


def rubbish(store: CellStore, declared: dict[str, Collection[str] | None]) -> Rubbish:
    """What of a store nobody needs.

    Args:
        store: the store.
        declared: asset -> the paths of the cells that an experiment file declares, None where cells come as asked for;
            an asset of an experiment in it that is not there itself is one of a removed entry.
    """
    experiments = {asset.split("/")[0] for asset in declared}
    found = Rubbish()
    limit = f"{datetime.now(UTC) - KEEP_SUPERSEDED:%Y%m%dT%H%M%S}"
    for experiment in sorted(experiments):
        sizes = store.sizes_below(experiment)
        for cell in store.cells(experiment):
            keys = declared.get(cell.asset, ())
            if keys is not None and cell.path not in keys:
                found.cells.append(cell)
        gone = {cell.path for cell in found.cells}
        _, versions = _listed(store, experiment)
        for folder, names in versions.items():
            served = store.version_of(folder)
            if served:
                found.versions += [(folder, one) for one in names if folder in gone or (one != served and one < limit)]
        removed = {f"{folder}/versions/{version}/" for folder, version in found.versions}
        found.size += sum(size for path, size in sizes.items() if any(path.startswith(one) for one in removed))
    return found


def old_runs(instance: "dg.DagsterInstance", age: timedelta) -> list[str]:
    """Dagster runs that ended long ago without having made anything."""
    import dagster as dg

    ended = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    wanted = dg.RunsFilter(statuses=ended, updated_before=datetime.now(UTC) - age)
    found = []
    for record in instance.get_run_records(filters=wanted):
        run_id = record.dagster_run.run_id
        made = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, limit=1).records
        if not made:
            found.append(run_id)
    return found


def orphaned_mlflow_runs(client: Any, store: CellStore, found: Rubbish, experiments: Collection[str]) -> list[str]:
    """MLflow runs that have ended and were logged for a cell that is not stored, or is to be removed."""
    gone = {cell.path for cell in found.cells}
    there = {cell.path for experiment in experiments for cell in store.cells(experiment)} - gone
    orphans = []
    for experiment in sorted(experiments):
        known, token = client.get_experiment_by_name(experiment), None
        while known:
            page = client.search_runs([known.experiment_id], page_token=token)
            for run in page:
                asset, key = run.data.tags.get("asset"), run.data.tags.get("partition")
                path = "/".join([asset or "", *(key.split("|") if key else [])])
                if asset and path not in there and run.info.status != "RUNNING":
                    orphans.append(run.info.run_id)
            if not (token := page.token):
                break
    return orphans


def declared_cells(graph: Any, experiment: str = "") -> dict[str, Collection[str] | None]:
    """What the experiment files declare, as :func:`rubbish` takes it; nothing of an experiment whose file is wrong.

    Raises:
        ExperimentError: when the file of the experiment that is asked for is wrong.
        UnknownExperimentError: when there is no such experiment.
    """
    from dioptra_assets.assets.boundary import DIMENSIONS, is_dynamic
    from dioptra_assets.broken_experiments import mistakes, refuse_broken
    from dioptra_assets.runs.launch import UnknownExperimentError
    from partitions.keys import partition_of

    refuse_broken(graph, experiment)
    broken = mistakes(graph)
    declared: dict[str, Collection[str] | None] = {}
    for key in graph.get_all_asset_keys():
        definition, asset = graph.get(key).partitions_def, key.to_user_string()
        if (experiment and key.path[0] != experiment) or key.path[0] in broken:
            continue
        if is_dynamic(definition):
            declared[asset] = None
            continue
        names, keys = (
            tuple(graph.get(key).metadata[DIMENSIONS]),
            definition.get_partition_keys() if definition else [None],
        )
        declared[asset] = {Cell(asset, partition_of(names, one)).path for one in keys}
    if not declared:
        known = ", ".join(sorted({key.path[0] for key in graph.get_all_asset_keys()}))
        raise UnknownExperimentError(f"there is no experiment {experiment!r}, there are {known}")
    return declared


def remove_rubbish(store: CellStore, found: Rubbish) -> None:
    """Remove cells and versions. What served a cell goes first: nothing leads to a version that is half gone."""
    for cell in found.cells:
        store.forget(cell)
    for folder, version in found.versions:
        store.remove_version(Cell(folder), version)


def backup(home: Path, store: CellStore, target: Path, log: Callable[[str], None] = lambda line: None) -> int:
    """Copy an embedded home while it is in use: its databases, its store, its settings. The copy is a home.

    Databases come first and the cells after them, so that no event of the copy is about a cell that it lacks; a cell
    that was made meanwhile is computed again there. Every byte of a cell is verified on its way. What waits for MLflow
    comes before MLflow's database: what was told meanwhile is told the copy again, with the same effect.

    Returns:
        The number of cells.

    Raises:
        BackupError: where the folder is not empty, or the store is a server.
        DamagedCellError: when a cell is not what was written.
    """
    if store.remote:
        raise BackupError(
            f"the store {store.url} is a server's: back it up there; this command copies an embedded home"
        )
    if target.exists() and any(target.iterdir()):
        raise BackupError(f"{target} is not empty")
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (home / name).is_file():
            shutil.copy(home / name, target / name)
    copy_of_store, copied = CellStore(str(target / "store")), 0
    copy_backlog(store, copy_of_store)
    for folder in DATABASES:
        for path in sorted((home / folder).rglob("*")):
            copy = target / path.relative_to(home)
            if path.suffix in (".db", ".sqlite"):
                copy.parent.mkdir(parents=True, exist_ok=True)
                _copy_database(path, copy)
            elif path.is_file() and not path.name.endswith(("-wal", "-shm", "-journal")):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
    log("databases are copied")
    for cell in store.cells(""):
        store.open(cell).copy_to(copy_of_store)
        copied += 1
    return copied


def _copy_database(source: Path, target: Path) -> None:
    """As SQLite copies one that others write to: as it is at one moment."""
    with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as opened, sqlite3.connect(target) as copy:
        opened.backup(copy)
    opened.close()
    copy.close()
