"""Whether a cell that is made from a hundred others or more is stale, which Dagster's stale status does not look at.

Dagster looks at every input cell one by one, and therefore at none where there are a hundred of an asset. Here all
cells that were made since are asked for at once: what they hold, and what they held.

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

# Cells named in one query, well below the number of parameters that every database takes; more are read all.
PAGE = 500


def crowded_inputs(graph: Any, key: dg.AssetKey, instance: dg.DagsterInstance) -> list[dg.AssetKey]:
    """The inputs of an asset that every one of its cells takes a hundred cells of, or more."""
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
    """Whether a cell of an input has other content than at an event, by its storage id, when something was made of it.

    True where there was no event: that was made before the asset had this input, or when it had no cell.
    """
    if pointer is None or not pointer.isdigit():
        return True
    return bool(changed_partitions(parent, int(pointer), instance))


def changed_partitions(
    asset: dg.AssetKey, moment: int, instance: dg.DagsterInstance, partitions: Collection[str] | None = None
) -> set[str]:
    """The cells of an asset, of some or of all there are, that hold another content than at an event.

    Args:
        asset: their asset.
        moment: storage id of the event.
        instance: where materializations are recorded.
        partitions: the cells to look at, None for all.
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
    return {one for one in touched if then.get(one) != now.get(one)}


def latest_events(
    asset: dg.AssetKey,
    instance: dg.DagsterInstance,
    partitions: Collection[str] | None = None,
    *,
    after: int | None = None,
) -> dict[str, int]:
    """Partition -> storage id of its last materialization, of some cells or all, where that is after an event."""
    few = set(partitions) if partitions is not None and len(partitions) <= PAGE else None
    found = instance.event_log_storage.get_latest_storage_id_by_partition(
        asset, dg.DagsterEventType.ASSET_MATERIALIZATION, partitions=few, after_cursor=after
    )
    if partitions is None:
        return dict(found)
    wanted = set(partitions)
    return {one: event for one, event in found.items() if one in wanted}
