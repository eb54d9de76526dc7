"""Checks of one partition each: how Dagster is told of them, and of what they found.

Why: docs/decisions/0027-a-verdict-names-what-it-judges.md
"""

import warnings
from typing import Any

import dagster as dg

from dioptra_assets.assets.ui_metadata import shown
from dioptra_assets.dagster_internals import AssetCheckEvaluationTargetMaterializationData


def evaluation(
    context: dg.AssetExecutionContext, result: dg.AssetCheckResult, partition: str | None
) -> dg.AssetCheckEvaluation:
    """What a check found of one cell. A result that is yielded as such is of the whole step, of which there is one."""
    assert result.asset_key is not None and result.check_name is not None
    # Dagster shows a result only where it is of the cell's last materialization.
    wanted = dg.AssetRecordsFilter(result.asset_key, asset_partitions=[partition] if partition else None)
    records = context.instance.fetch_materializations(wanted, limit=1).records
    target = records[0] if records else None
    return dg.AssetCheckEvaluation(
        result.asset_key,
        result.check_name,
        result.passed,
        metadata=shown(result.metadata or {}),
        severity=result.severity,
        description=result.description,
        # Dagster would fail the step after its last cell; which cells are blocked is said by `dg.Failure`.
        blocking=False,
        partition=partition,
        target_materialization_data=AssetCheckEvaluationTargetMaterializationData(
            run_id=target.run_id, storage_id=target.storage_id, timestamp=target.timestamp
        )
        if target
        else None,
    )


def partitioned_check(name: str, **facts: Any) -> dg.AssetCheckSpec:
    """A check that is judged partition by partition, as `AssetCheckSpec` takes it.

    Dagster calls that a preview, and says so in every process that loads the code. The version is pinned, and a test
    looks at what it does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(name, **facts)
