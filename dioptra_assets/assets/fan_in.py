"""Whether a cell that is made from a hundred others or more is stale, which Dagster's stale status does not look at.

Dagster looks at every input cell one by one, and therefore at none where there are a hundred of an asset. Here the
events since the cell was made are looked at, and there are few of them, or the cell is stale at the first.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD,
    extract_data_version_from_entry,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.partitions.context import partition_loading_context

AT_ONCE = 1000


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


def fan_in_changed(
    key: dg.AssetKey, partition: str | None, inputs: Sequence[dg.AssetKey], instance: dg.DagsterInstance
) -> bool:
    """Whether one of the crowded inputs of a cell has other content than when the cell was made.

    False where it has none, or was never made.
    """
    if not inputs:
        return False
    own = [partition] if partition else None
    last = instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=own), limit=1).records
    if not last or not last[0].asset_materialization:
        return False
    tags = last[0].asset_materialization.tags or {}
    return any(_changed_since(parent, tags.get(get_input_event_pointer_tag(parent)), instance) for parent in inputs)


def _changed_since(parent: dg.AssetKey, pointer: str | None, instance: dg.DagsterInstance) -> bool:
    if pointer is None or not pointer.isdigit():
        return True  # made before the asset had this input, or when it had no cell
    seen, cursor = set(), None
    while True:
        wanted = dg.AssetRecordsFilter(parent, after_storage_id=int(pointer))
        page = instance.fetch_materializations(wanted, limit=AT_ONCE, cursor=cursor)
        for record in page.records:
            # The newest comes first: what a cell held between says nothing.
            if record.partition_key in seen:
                continue
            seen.add(record.partition_key)
            then = dg.AssetRecordsFilter(
                parent, asset_partitions=[str(record.partition_key)], before_storage_id=int(pointer) + 1
            )
            before = instance.fetch_materializations(then, limit=1).records
            old = extract_data_version_from_entry(before[0].event_log_entry) if before else None
            if old != extract_data_version_from_entry(record.event_log_entry):
                return True
        if not page.has_more:
            return False
        cursor = page.cursor
