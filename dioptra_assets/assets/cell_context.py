"""What a cell's computation has at hand, and what it gives back."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from dioptra_assets import progress
from dioptra_assets.robustness.seeds import derive_seed
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE
from resources.store import Cell, CellStore, Destination, MissingCellError, StoredCell
from resources.tracking.backlog import TrackedRun
from resources.tracking.resource import Tracking

Metadata = Mapping[str, Any]
# The entry of an asset's metadata that names the dimensions it is partitioned by.
DIMENSIONS = "dimensions"


@dataclass(frozen=True)
class CellResult:
    """What a cell's computation gives back.

    Attributes:
        stored: the version that is served now; None where a check that blocks has failed and nothing was written.
        metadata: what the UI shows of it.
        metrics: numbers, shown in the UI and logged to MLflow.
        step: the step they are logged at: the last epoch, where earlier ones have been logged.
        tags: of the MLflow run, beside the numbers: what is known only at the end.
        checks: results of the checks that the asset declares. Where one that blocks has failed, the cell is reported
            as failed and not as materialized, so that nothing is made from it.
    """

    stored: StoredCell | None
    metadata: Metadata = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    checks: Sequence[dg.AssetCheckResult] = ()


# What the branch of registered models has of its own; testing set and configs are those of the experiment.
BRANCH_ASSETS = frozenset(
    {
        *("model", "clean_predictions", "adversarial_set", "evasion_examples", "evasion_metrics"),
        *("model_sanity", "evasion_gate"),
    }
)


@dataclass(frozen=True)
class CellContext:
    """What a cell's computation has at hand.

    Attributes:
        spec: the experiment.
        cell: which asset and partition is computed.
        store: where inputs are read and the value is written.
        registry: MLflow.
        tracking: the cell's MLflow run, None where the asset has none; what MLflow cannot be told now is told later.
        run_id: the Dagster run.
        guard: to be called last before a value is published; raises where the run has ended.
        log: shows a line in the run's log.
        report: tells Dagster what a check of another asset, without partitions, has found.
        versions: gives the registered versions that are partitions of the experiment.
        facts: attributes that what is stored gets beside its own; of a registered version its recipe, see
            `assets/reuse.py`.
        twin: a cell of another version with the same recipe, to be taken over; None where it has to be computed.
    """

    spec: ExperimentSpec
    cell: Cell
    store: CellStore
    registry: Tracking
    tracking: TrackedRun | None
    run_id: str
    guard: Callable[[], None]
    log: Callable[[str], None]
    report: Callable[[dg.AssetCheckResult], None] = lambda _: None
    versions: Callable[[], Sequence[str]] = tuple
    facts: Mapping[str, str] = field(default_factory=dict)
    twin: StoredCell | None = None

    @contextmanager
    def mlflow_run(self) -> Iterator[TrackedRun | None]:
        """The MLflow run, for logging beside metrics."""
        yield self.tracking

    @property
    def seed(self) -> int:
        """The one seed of this cell; of a registered version it goes by the model's content, not by its number."""
        cell = self.cell
        if self.spec.branch:
            model = self.read("model", **{ARCHITECTURE: cell.partition[ARCHITECTURE]})
            cell = Cell(cell.asset, {**cell.partition, ARCHITECTURE: model.manifest.data_version})
        return derive_seed(self.spec.seed, *cell.path.split("/")[1:])

    @property
    def destination(self) -> Destination:
        """Where the value of this cell is written."""
        return Destination(self.store, self.cell, self.run_id, self.guard)

    def architectures(self) -> list[str]:
        """The architecture keys of the experiment; where they come as they are asked for, those of the models made."""
        if self.spec.branch:
            return [self.cell.partition[ARCHITECTURE]]  # a registered model is attacked and evaluated alone
        if not self.spec.dynamic:
            return list(self.spec.architectures)
        asset = f"{self.spec.name}/model"
        return [cell.partition[ARCHITECTURE] for cell in self.store.cells(asset) if cell.asset == asset]

    def input_cell(self, asset: str, **partition: str) -> Cell:
        """A cell of this experiment, of the same branch where the branch has such an asset."""
        return Cell("/".join(asset_key(self.spec, asset).path), partition)

    def read(self, asset: str, **partition: str) -> StoredCell:
        """An input of this cell.

        Raises:
            MissingCellError: naming the cell and the command that makes it.
            DamagedCellError: when it is not what was written.
        """
        return self.store.open(self.input_cell(asset, **partition))

    def present(self, asset: str, cells: Sequence[Mapping[str, str]]) -> tuple[list[StoredCell], list[str]]:
        """Those of some cells that have been materialized, and the paths of those that have not."""
        stored, missing = [], []
        wanted = [self.input_cell(asset, **partition) for partition in cells]
        found = self.store.found(wanted)
        for cell in wanted:
            try:
                stored.append(found.get(cell) or self.store.open(cell))
            except MissingCellError:
                missing.append(cell.path)
        return stored, missing

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A callback (done, of how many): shows how far the cell is, and logs a line every ten seconds."""
        started = time.monotonic()
        reported = started

        def report(done: int, total: int) -> None:
            nonlocal reported
            progress.said(self.cell.path, f"{what} {done:,} of {total:,}", done / total)
            now = time.monotonic()
            if now - reported >= 10 and done < total:
                reported = now
                left = (now - started) * (total - done) / done
                self.log(f"{self.cell}: {what} {done:,} of {total:,}, about {left:.0f} s left")

        return report

    def epochs(self, share: float, where: str) -> None:
        """Shows how far a cell that trains is: the share done, and where that is, such as `epoch 2 of 10`."""
        progress.said(self.cell.path, where, share)


def asset_key(spec: ExperimentSpec, name: str) -> dg.AssetKey:
    """The key of an asset of an experiment: `defended_set/jpeg` is three parts with the experiment's name."""
    branch = [spec.branch] if spec.branch and name in BRANCH_ASSETS else []
    return dg.AssetKey([spec.name, *branch, *name.split("/")])


def every(spec: ExperimentSpec, name: str) -> dg.AssetDep:
    """A dependency on every partition of an asset of the same experiment, whatever the partition of the child.

    In a branch, where each model stands alone, on the child's own.
    """
    if spec.branch:
        return dg.AssetDep(asset_key(spec, name))
    return dg.AssetDep(asset_key(spec, name), partition_mapping=dg.AllPartitionMapping())
