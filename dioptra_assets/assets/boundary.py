"""The cell boundary: how every asset of an experiment computes, stores and reports its partitions.

A run may compute one cell or hundreds of one asset. A backfill is one run, so TensorFlow is imported once. Each cell is
stored and reported as it ends, with the hash of its content as data version and the versions of its inputs as
provenance. A failed cell is reported, and the others are kept.

Why: docs/decisions/0001-many-cells-one-run.md
Why: docs/decisions/0020-automation-goes-by-content.md
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import dagster as dg

from dioptra_assets import progress
from dioptra_assets.assets.cell_context import (
    DIMENSIONS,
    CellContext,
    CellResult,
    asset_key,
)
from dioptra_assets.assets.check_events import evaluation
from dioptra_assets.assets.provenance import NO_FURTHER_EVENT, provenance_tags
from dioptra_assets.assets.retries import (
    RunEndedError,
    left_to_do,
    refuse_before_work,
    refuse_ended_run,
    try_again_where_the_store_is_away,
)
from dioptra_assets.assets.reuse import RECIPE, Inputs, recipe_of, twin_of
from dioptra_assets.assets.ui_metadata import MLFLOW_RUN_ID, column_schema, shown
from partitions.attacks import Family
from partitions.definitions import dynamic_dimension, partitions_of
from partitions.experiments import BRANCH, ExperimentSpec
from partitions.keys import ARCHITECTURE, partition_key_of, partition_of
from resources import settings
from resources.compute import device
from resources.executors.backfills import backfill_policy
from resources.executors.choice import gpu_tags
from resources.store import Cell, CellStore, StoredCell, StoreResource
from resources.tracking.backlog import TrackedRun, tracked_run
from resources.tracking.resource import Tracking

# The resource that loads the values of cells. Assets that users add keep their own IO manager.
IO_MANAGER = "stored_cells"


def cell_asset(
    spec: ExperimentSpec,
    name: str,
    compute: Callable[[CellContext], CellResult],
    *,
    description: str,
    dimensions: tuple[str, ...] = (),
    family: Family = "evasion",
    deps: Sequence[dg.AssetDep | str] = (),
    kinds: set[str],
    columns: Mapping[str, str] | None = None,
    pool: str | None = None,
    params: Callable[[Mapping[str, str]], Mapping[str, Any]] | None = None,
    code_version: str = "1",
    seeded: bool = False,
    edits: bool = True,
    checks: Sequence[dg.AssetCheckSpec] = (),
    reusable: Inputs | None = None,
) -> dg.AssetsDefinition:
    """An asset of an experiment.

    Args:
        spec: the experiment. Its name is the prefix and group of the asset.
        name: name of the asset below the prefix.
        compute: computes one cell.
        description: what the asset is, in Markdown.
        dimensions: what it is partitioned by, in alphabetical order.
        family: family of the attacks in the dimension `attack`.
        deps: inputs from the same experiment, by name or as `AssetDep` with a full key.
        kinds: shown as icons. The role of an asset of a defence or a branch is added.
        columns: description of each column, for a table.
        pool: pool of the steps that train or attack. They ask their executor for a GPU.
        params: function from a partition to the parameters logged to MLflow. Without it, there is no MLflow run.
        code_version: raise it when the computation changes, so that earlier results become stale.
        seeded: whether it uses the seed of the experiment, and becomes stale when the seed is edited.
        edits: whether automation recomputes it when its declaration is edited, not only when its inputs change.
        checks: checks on this asset. Every `CellResult` holds a result for each.
        reusable: inputs of cells of registered versions that can be copied from a version with the same bytes.
    """
    asset_spec = dg.AssetSpec(
        key=asset_key(spec, name),
        deps=[dg.AssetDep(asset_key(spec, dep)) if isinstance(dep, str) else dep for dep in deps],
        description=description,
        group_name=spec.name,
        kinds=kinds | _role(spec, name),
        owners=list(spec.owners),
        code_version=f"{code_version}-{spec.seed}" if seeded else code_version,
        partitions_def=partitions_of(spec, dimensions, family),
        automation_condition=_automation(edits=edits) if spec.automation and not spec.branch else None,
        metadata={DIMENSIONS: list(dimensions)}
        | ({"dagster/column_schema": column_schema(name, columns)} if columns else {}),
    ).with_io_manager_key(IO_MANAGER)

    registered = dynamic_dimension(spec.name, BRANCH)
    blockers = {check.name for check in checks if check.blocking}

    @dg.multi_asset(
        specs=[asset_spec],
        name="__".join(asset_spec.key.path),
        check_specs=checks,
        pool=pool,
        op_tags=gpu_tags() if pool else None,
        backfill_policy=backfill_policy() if dimensions else None,
    )
    def materialize(
        context: dg.AssetExecutionContext, store: StoreResource, tracking: Tracking
    ) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation | dg.Output[None]]:
        keys = left_to_do(context, asset_spec.key, context.partition_keys if dimensions else [None])
        failures: dict[str, str] = {}
        cells, asset = store.cells(), "/".join(asset_spec.key.path)
        refuse_before_work(context, cells, spec, asset)
        for number, key in enumerate(progress.counted(keys, failures), start=1):
            cell = Cell(asset, partition_of(dimensions, key))
            tags = provenance_tags(context, asset_spec.key, cell.partition)
            started, run, result = time.monotonic(), None, None
            try:
                with ExitStack() as stack:
                    facts = dict(params(cell.partition)) if params else {}
                    # The partition is already in the tags of the run: log it with the metrics, in one request.
                    late = facts if facts == dict(cell.partition) else {}
                    if params:
                        run = _tracked(stack, tracking, cells, context, cell, params={} if late else facts)
                    guard = functools.partial(refuse_ended_run, context)
                    versions = functools.partial(context.instance.get_dynamic_partitions, registered)
                    cell_context = CellContext(
                        spec,
                        cell,
                        cells,
                        tracking,
                        run,
                        context.run_id,
                        guard,
                        context.log.info,
                        _reporter(context),
                        versions,
                    )
                    result = compute(_with_twin(cell_context, reusable or {}, code_version, context.instance))
                    if run and (result.metrics or result.tags or late):
                        run.log_metrics(result.metrics, result.step, tags=result.tags, params=late)
            except Exception as error:
                try_again_where_the_store_is_away(context, cells, error)
                if len(keys) == 1 or isinstance(error, RunEndedError):
                    raise
                failures[cell.path] = f"{type(error).__name__}: {error}"
                context.log.error(f"{cell} failed ({number} of {len(keys)})", exc_info=error)
                continue
            assert result is not None
            blocking = [check for check in result.checks if not check.passed and check.check_name in blockers]
            if blocking:
                yield from (evaluation(context, check, key) for check in result.checks)
                reasons = "; ".join(str(check.description) for check in blocking)
                if len(keys) == 1:
                    raise dg.Failure(f"{cell}: blocking checks failed: {reasons}")
                failures[cell.path] = f"blocking checks failed: {reasons}"
                continue
            assert result.stored is not None
            yield dg.AssetMaterialization(
                asset_spec.key,
                partition=dg.MultiPartitionKey(dict(cell.partition)) if len(dimensions) > 1 else key,
                metadata=({"device": device()} if pool else {})
                | _metadata(result, cells, run, time.monotonic() - started),
                tags=tags | _data_version(result.stored),
            )
            yield from (evaluation(context, check, key) for check in result.checks)
        if failures:
            raise dg.Failure(
                f"{len(failures)} of {len(keys)} cells of {asset} failed, the others are kept",
                metadata={path: dg.MetadataValue.text(reason) for path, reason in failures.items()},
            )
        asset_output, *check_outputs = context.op_execution_context.op_def.output_defs
        yield dg.Output(None, output_name=asset_output.name, metadata=NO_FURTHER_EVENT)
        # Check results were already reported cell by cell.
        yield from (dg.Output(None, output_name=output.name) for output in check_outputs)

    return materialize


def _with_twin(cell: CellContext, inputs: Inputs, code_version: str, instance: dg.DagsterInstance) -> CellContext:
    """The same context, with a cell of the same bytes to copy if there is one. See `assets/reuse.py`."""
    if not cell.spec.branch or not inputs:
        return cell
    recipe = recipe_of(cell, inputs, code_version)
    twin = twin_of(cell, recipe, instance)
    if twin:
        cell.log(f"{cell.cell} is copied from {twin.cell}, which has the same bytes")
        if cell.tracking:
            cell.tracking.log_tags({"taken_over_from": twin.cell.partition[ARCHITECTURE]})
    return replace(cell, facts={RECIPE: recipe}, twin=twin)


def _role(spec: ExperimentSpec, name: str) -> set[str]:
    """The role of an asset of a defence or a branch. Dagster's lineage shows only the last part of a key, and kinds."""
    role = name.rpartition("/")[0] or spec.branch
    return {role} if role else set()


def _automation(*, edits: bool) -> dg.AutomationCondition:
    """Compute a cell when it goes missing, when its declaration is edited, or when an input has changed.

    Changes are judged by content: an input that was computed again with the same value changes nothing. A failed cell
    is retried when something changes, not at every tick. An asset that reads all cells waits until they exist.
    """
    condition: Any = dg.AutomationCondition  # its generic types do not combine
    changed = (
        condition.newly_missing()
        | (condition.initial_evaluation() & condition.missing())
        | condition.any_deps_match(condition.data_version_changed())
    )
    if edits:
        changed |= condition.code_version_changed()
    changed = changed.since(condition.newly_requested() | condition.newly_updated())
    return changed & ~condition.any_deps_missing() & ~condition.any_deps_in_progress() & ~condition.in_progress()


def _reporter(context: dg.AssetExecutionContext) -> Callable[[dg.AssetCheckResult], None]:
    return lambda result: context.instance.report_runless_asset_event(evaluation(context, result, None))


def _tracked(
    stack: ExitStack,
    tracking: Tracking,
    store: CellStore,
    context: dg.AssetExecutionContext,
    cell: Cell,
    *,
    params: Mapping[str, Any],
) -> TrackedRun:
    """The MLflow run of a cell. A cell never fails because of MLflow."""
    experiment, asset = cell.asset.split("/", 1)
    tags = {"asset": cell.asset, "dagster_run_id": context.run_id, **cell.partition}
    if key := partition_key_of(cell.partition):
        tags["partition"] = key
    name = f"{asset} {key}" if key else asset
    warn = context.log.warning
    return stack.enter_context(tracked_run(tracking, store, experiment, name, tags=tags, params=params, log=warn))


def _data_version(stored: StoredCell) -> dict[str, str]:
    return {"dagster/data_version": stored.manifest.data_version, "dagster/data_version_is_user_provided": "true"}


def _metadata(result: CellResult, store: CellStore, run: TrackedRun | None, seconds: float) -> dict[str, Any]:
    assert result.stored is not None
    metadata: dict[str, Any] = {**result.metadata}
    metadata |= {name: float(value) for name, value in result.metrics.items()}
    metadata["stored_at"] = dg.MetadataValue.path(f"{store.url}/{result.stored.prefix}")
    metadata["bytes"] = sum(record.size for record in result.stored.manifest.files.values())
    metadata["seconds"] = round(seconds, 2)
    if "rows" in result.stored.manifest.attributes:
        metadata["dagster/row_count"] = result.stored.manifest.attributes["rows"]
    if run and run.why:
        metadata["mlflow"] = "waiting: run `dioptra-assets mlflow-backlog` once MLflow is back"
    if run and run.run_id:
        metadata["mlflow_run"] = dg.MetadataValue.url(
            run.url or f"{settings.mlflow_ui()}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        )
        metadata[MLFLOW_RUN_ID] = run.run_id
    return shown(metadata)
