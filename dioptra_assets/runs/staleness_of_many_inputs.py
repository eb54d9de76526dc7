"""Whether a cell with a hundred input cells or more is stale, which Dagster's stale status does not check.

Dagster checks input cells one by one, and therefore skips inputs with a hundred cells or more. Here one query reads all
input cells made since then: their content now and before.

Why: docs/decisions/0039-stale-cells-in-bulk.md
"""

from collections.abc import Collection, Mapping
from typing import Any

import dagster as dg

from dioptra_assets.dagster_internals import (
    DATA_VERSION_TAG,
    SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD,
    partition_loading_context,
)

# Most cells named in one query, well below the parameter limit of any database. Beyond it, all cells are read.
PAGE = 500


def crowded_inputs(graph: Any, key: dg.AssetKey, instance: dg.DagsterInstance) -> list[dg.AssetKey]:
    """The inputs of an asset of which each of its cells reads a hundred cells or more."""
    node = graph.get(key)
    found = []
    with partition_loading_context(dynamic_partitions_store=instance):
        for parent in sorted(node.parent_keys):
            cells = graph.get(parent).partitions_def
            whole = node.partitions_def is None or isinstance(
                graph.get_partition_mapping(key, parent_asset_key=parent), dg.AllPartitionMapping
            )
            if cells and whole and cells.get_num_partitions() >= SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD:
                found.append(parent)
    return found


def changed_since(parent: dg.AssetKey, pointer: str | None, instance: dg.DagsterInstance) -> bool:
    """Whether any cell of an input has changed since an event, given by its storage id.

    True if there is no event: the cell was made before the asset had this input, or while the input had no cells.
    """
    if pointer is None or not pointer.isdigit():
        return True
    return bool(changed_partitions(parent, int(pointer), instance))


def changed_partitions(
    asset: dg.AssetKey, moment: int, instance: dg.DagsterInstance, partitions: Collection[str] | None = None
) -> set[str]:
    """The cells of an asset whose content has changed since an event.

    Args:
        asset: the asset.
        moment: storage id of the event.
        instance: where materializations are recorded.
        partitions: the cells to check, None for all.
    """
    touched = latest_events(asset, instance, partitions, after=moment)
    if not touched:
        return set()

    def versions(**cursor: int) -> Mapping[str, Mapping[str, str]]:
        return instance.event_log_storage.get_latest_tags_by_partition(
            asset,
            dg.DagsterEventType.ASSET_MATERIALIZATION,
            [DATA_VERSION_TAG],
            asset_partitions=list(touched) if len(touched) <= PAGE else None,
            **cursor,
        )

    then, now = versions(before_cursor=moment + 1), versions(after_cursor=moment)
    return {cell for cell in touched if then.get(cell) != now.get(cell)}


def latest_events(
    asset: dg.AssetKey,
    instance: dg.DagsterInstance,
    partitions: Collection[str] | None = None,
    *,
    after: int | None = None,
) -> dict[str, int]:
    """Storage id of the last materialization per partition, only of those after an event if one is given."""
    few = set(partitions) if partitions is not None and len(partitions) <= PAGE else None
    latest = instance.event_log_storage.get_latest_storage_id_by_partition(
        asset, dg.DagsterEventType.ASSET_MATERIALIZATION, partitions=few, after_cursor=after
    )
    if partitions is None:
        return dict(latest)
    wanted = set(partitions)
    return {cell: event for cell, event in latest.items() if cell in wanted}
