"""Which cells of an asset are missing or stale: Dagster's rule, with a few queries an asset in place of some a cell.

Dagster's own resolver asks its storage several times a cell, and looks at no input of a hundred cells or more. Here the
last materialization of every cell is read in pages, and what its inputs held then and hold now is asked once for each
moment at which cells were made. What is unlike the assets of this project is left to the resolver, and the tests hold
the two against each other.

Why: docs/decisions/0039-stale-cells-in-bulk.md
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import dagster as dg
from dagster import DataProvenance, DataVersion

from dioptra_assets.dagster_internals import (
    DEFAULT_DATA_VERSION,
    NULL_DATA_VERSION,
    SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD,
    CachingStaleStatusResolver,
    LoadingContext,
    StaleStatus,
    extract_data_version_from_entry,
    get_infer_single_to_multi_dimension_deps_result,
    get_input_event_pointer_tag,
    partition_loading_context,
)
from dioptra_assets.runs.fan_in import PAGE, changed_partitions, changed_since, crowded_inputs, latest_events

Partition = str | None


class _Loading(LoadingContext):
    """What Dagster's stale status asks for beside the instance: a place to keep what it has read."""

    def __init__(self, instance: dg.DagsterInstance):
        self._instance = instance
        self._loaders: dict[Any, Any] = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict[Any, Any]:
        return self._loaders


def stale_cells(
    graph: Any, key: dg.AssetKey, partitions: Collection[Partition], instance: dg.DagsterInstance
) -> set[Partition]:
    """Those of the cells of an asset that were never made, or of other code, inputs or contents of inputs.

    Args:
        graph: the asset graph.
        key: the asset.
        partitions: its cells to look at; `{None}` for one without partitions.
        instance: where materializations are recorded.
    """
    with partition_loading_context(dynamic_partitions_store=instance):
        resolver = CachingStaleStatusResolver(instance, graph, _Loading(instance))
        if not _ordinary(graph, key):
            return {one for one in partitions if resolver.get_status(key, one) != StaleStatus.FRESH}
        node, tags = graph.get(key), _made(key, partitions, instance)
        made = {one: found for one, said in tags.items() if (found := DataProvenance.from_tags(said))}
        stale = {one for one in partitions if one not in tags}
        # Reported by hand, without what it was made from: Dagster goes by the time of the inputs then.
        stale |= {one for one in tags if one not in made and resolver.get_status(key, one) != StaleStatus.FRESH}
        for one, provenance in made.items():
            edited = node.code_version and node.code_version != provenance.code_version
            if edited or not node.parent_keys >= provenance.input_data_versions.keys():
                stale.add(one)
        crowded = crowded_inputs(graph, key, instance)
        for parent in sorted(node.parent_keys):
            left = {one: provenance for one, provenance in made.items() if one not in stale}
            if parent in crowded:
                pointers = {one: said.get(get_input_event_pointer_tag(parent)) for one, said in tags.items()}
                changed = {pointer: changed_since(parent, pointer, instance) for pointer in set(pointers.values())}
                stale |= {one for one, pointer in pointers.items() if changed[pointer]}
            elif graph.get(parent).is_partitioned:
                stale |= _made_from_others(graph, key, parent, left, instance)
            else:
                version = _version(parent, instance)
                stale |= {one for one, provenance in left.items() if _differs(provenance, parent, version)}
        return stale


def _ordinary(graph: Any, key: dg.AssetKey) -> bool:
    """Whether an asset and its inputs are computed here, and none by time or from itself."""
    parents = graph.get(key).parent_keys
    nodes = [graph.get(one) for one in (key, *parents)]
    return key not in parents and all(
        node.is_materializable
        and not (node.is_observable or node.is_virtual)
        and not isinstance(node.partitions_def, dg.TimeWindowPartitionsDefinition)
        for node in nodes
    )


def _made(
    key: dg.AssetKey, partitions: Collection[Partition], instance: dg.DagsterInstance
) -> dict[Partition, Mapping[str, str]]:
    """The tags of the last materialization of every cell that has one."""
    if None in partitions:
        records = [_last(key, instance)]
    else:
        latest = latest_events(key, instance, {str(one) for one in partitions})
        ids, records = sorted(latest.values()), []
        for start in range(0, len(ids), PAGE):
            wanted = dg.AssetRecordsFilter(key, storage_ids=ids[start : start + PAGE])
            records += instance.fetch_materializations(wanted, limit=PAGE).records
    return {record.partition_key: record.event_log_entry.tags or {} for record in records if record}


def _last(key: dg.AssetKey, instance: dg.DagsterInstance) -> dg.EventLogRecord | None:
    records = instance.get_asset_records([key])
    return records[0].asset_entry.last_materialization_record if records else None


def _version(parent: dg.AssetKey, instance: dg.DagsterInstance) -> DataVersion:
    """What an input without partitions holds."""
    last = _last(parent, instance)
    return (
        (extract_data_version_from_entry(last.event_log_entry) or DEFAULT_DATA_VERSION) if last else NULL_DATA_VERSION
    )


def _differs(provenance: DataProvenance, parent: dg.AssetKey, version: DataVersion) -> bool:
    if not provenance.has_input_asset(parent):
        return True
    then = provenance.input_data_versions[parent]
    # Dagster has two names for what was not made by it.
    return then != version and (then, version) != (DEFAULT_DATA_VERSION, NULL_DATA_VERSION)


def _made_from_others(
    graph: Any,
    key: dg.AssetKey,
    parent: dg.AssetKey,
    made: Mapping[Partition, DataProvenance],
    instance: dg.DagsterInstance,
) -> set[Partition]:
    """The cells of which a cell of an input with partitions has other content than when they were made."""
    cells_of = _cells_of(graph, key, parent)
    taken = {
        one: found for one in made if 0 < len(found := cells_of(one)) < SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD
    }
    stale = {one for one in taken if not made[one].has_input_asset(parent)}
    moments: dict[int, set[str]] = defaultdict(set)
    latest = latest_events(parent, instance, set().union(*taken.values()))
    # Dagster takes an input that had no cell at all for unchanged.
    made_at = {one: moment for one in taken if one not in stale and (moment := made[one].input_storage_ids[parent])}
    for one, moment in made_at.items():
        moments[moment] |= {cell for cell in taken[one] if latest.get(cell, 0) > moment}
    changed = {
        moment: changed_partitions(parent, moment, instance, cells) for moment, cells in moments.items() if cells
    }
    return stale | {one for one, moment in made_at.items() if changed.get(moment, set()) & taken[one]}


def _cells_of(graph: Any, key: dg.AssetKey, parent: dg.AssetKey) -> Callable[[Partition], frozenset[str]]:
    """From a cell to the cells of an input that it is made from, as Dagster maps them.

    A millisecond each where one of two dimensions counts; those that share it are asked for once.
    """
    own, others = graph.get(key).partitions_def, graph.get(parent).partitions_def
    mapping = graph.get_partition_mapping(key, parent_asset_key=parent)
    position, known = None, dict[Partition, frozenset[str]]()
    if isinstance(mapping, dg.MultiToSingleDimensionPartitionMapping) and isinstance(own, dg.MultiPartitionsDefinition):
        inferred = get_infer_single_to_multi_dimension_deps_result(others, own, mapping.partition_dimension_name)
        names = [dimension.name for dimension in own.partitions_defs]
        assert inferred.dimension_dependency
        position = names.index(str(inferred.dimension_dependency.downstream_dimension_name))

    def cells_of(partition: Partition) -> frozenset[str]:
        shared = partition if position is None or partition is None else partition.split("|")[position]
        if shared not in known:
            found = graph.get_parent_partition_keys_for_child(partition, parent, key).partitions_subset
            known[shared] = frozenset(map(str, found.get_partition_keys()))
        return known[shared]

    return cells_of
