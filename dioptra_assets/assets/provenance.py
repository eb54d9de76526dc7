"""What each cell was made from, in the tags that Dagster's staleness reads.

Dagster itself gives every partition of a run the same data version. A run of many cells therefore reports each cell
with tags of its own, and marks its output so that Dagster reports nothing after it. Dagster keeps these tags and that
mark internal; they are used here and nowhere else, and the tests hold them to what the stale status shows.

Why: docs/decisions/0002-each-cell-reports-itself.md
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from dioptra_assets.dagster_internals import (
    CODE_VERSION_TAG,
    NULL_EVENT_POINTER,
    SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION,
    extract_data_version_from_entry,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

NO_FURTHER_EVENT: Mapping[str, Any] = {SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True}


def provenance_tags(
    context: dg.AssetExecutionContext, key: dg.AssetKey, partition: Mapping[str, str]
) -> dict[str, str]:
    """Code version, input versions and dimensions of one cell, read before its inputs are.

    A later materialization of an input, with another content, then makes the cell stale; one of the same content, or of
    a partition that the cell was not made from, does not.
    """
    node = context.assets_def.specs_by_key[key]
    tags = {CODE_VERSION_TAG: node.code_version or context.run_id}
    parents = [dep.asset_key for dep in node.deps]
    records = {record.asset_entry.asset_key: record for record in context.instance.get_asset_records(parents)}
    for parent in parents:
        record = records.get(parent)
        event = record.asset_entry.last_materialization_record if record else None
        version = extract_data_version_from_entry(event.event_log_entry) if event else None
        tags[get_input_event_pointer_tag(parent)] = str(event.storage_id) if event else NULL_EVENT_POINTER
        tags[get_input_data_version_tag(parent)] = version.value if version else "INITIAL"
    if len(partition) > 1:
        tags |= {f"dagster/partition/{dimension}": value for dimension, value in partition.items()}
    return tags
