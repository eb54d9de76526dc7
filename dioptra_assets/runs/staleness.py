"""Which cells of an asset are missing or stale: Dagster's rule, with a few queries per asset instead of per cell.

Dagster's resolver queries its storage several times per cell, and ignores inputs of a hundred cells or more. Here the
last materialization of every cell is read in pages. What the inputs held then and hold now is read once per moment at
which cells were made. Assets unlike those of this project are left to the resolver. Tests compare the two.

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
from dioptra_assets.runs.staleness_of_many_inputs import (
    PAGE,
    changed_partitions,
    changed_since,
    crowded_inputs,
    latest_events,
)

Partition = str | None


class _Loading(LoadingContext):
    """What Dagster's resolver needs besides the instance: a cache for what it has read."""

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
    """The cells of an asset that were never made, or whose code, set of inputs or input contents have changed.

    Args:
        graph: the asset graph.
        key: the asset.
        partitions: the cells to check; `{None}` for an asset without partitions.
        instance: where materializations are recorded.
    """
    with partition_loading_context(dynamic_partitions_store=instance):
        resolver = CachingStaleStatusResolver(instance, graph, _Loading(instance))
        if not _ordinary(graph, key):
            return {cell for cell in partitions if resolver.get_status(key, cell) != StaleStatus.FRESH}
        node, tags_of = graph.get(key), _last_tags(key, partitions, instance)
        recorded = {cell: DataProvenance.from_tags(tags) for cell, tags in tags_of.items()}
        provenances = {cell: provenance for cell, provenance in recorded.items() if provenance}
        stale = {cell for cell in partitions if cell not in tags_of}
        # Materializations reported by hand carry no provenance: Dagster then compares the times of the inputs.
        by_time = tags_of.keys() - provenances.keys()
        stale |= {cell for cell in by_time if resolver.get_status(key, cell) != StaleStatus.FRESH}
        for cell, provenance in provenances.items():
            edited = node.code_version and node.code_version != provenance.code_version
            if edited or not node.parent_keys >= provenance.input_data_versions.keys():
                stale.add(cell)
        crowded = crowded_inputs(graph, key, instance)
        for parent in sorted(node.parent_keys):
            unchecked = {cell: provenance for cell, provenance in provenances.items() if cell not in stale}
            if parent in crowded:
                pointers = {cell: tags.get(get_input_event_pointer_tag(parent)) for cell, tags in tags_of.items()}
                changed = {pointer: changed_since(parent, pointer, instance) for pointer in set(pointers.values())}
                stale |= {cell for cell, pointer in pointers.items() if changed[pointer]}
            elif graph.get(parent).is_partitioned:
                stale |= _with_changed_cells(graph, key, parent, unchecked, instance)
            else:
                version = _version(parent, instance)
                stale |= {cell for cell, provenance in unchecked.items() if _differs(provenance, parent, version)}
        return stale


def _ordinary(graph: Any, key: dg.AssetKey) -> bool:
    """Whether an asset and its inputs are computed here, none is partitioned by time, and none is its own input."""
    parents = graph.get(key).parent_keys
    nodes = [graph.get(asset) for asset in (key, *parents)]
    return key not in parents and all(
        node.is_materializable
        and not (node.is_observable or node.is_virtual)
        and not isinstance(node.partitions_def, dg.TimeWindowPartitionsDefinition)
        for node in nodes
    )


def _last_tags(
    key: dg.AssetKey, partitions: Collection[Partition], instance: dg.DagsterInstance
) -> dict[Partition, Mapping[str, str]]:
    """Tags of the last materialization of every cell that has one."""
    if None in partitions:
        records = [_last(key, instance)]
    else:
        latest = latest_events(key, instance, {str(cell) for cell in partitions})
        ids, records = sorted(latest.values()), []
        for start in range(0, len(ids), PAGE):
            wanted = dg.AssetRecordsFilter(key, storage_ids=ids[start : start + PAGE])
            records += instance.fetch_materializations(wanted, limit=PAGE).records
    return {record.partition_key: record.event_log_entry.tags or {} for record in records if record}


def _last(key: dg.AssetKey, instance: dg.DagsterInstance) -> dg.EventLogRecord | None:
    records = instance.get_asset_records([key])
    return records[0].asset_entry.last_materialization_record if records else None


def _version(parent: dg.AssetKey, instance: dg.DagsterInstance) -> DataVersion:
    """The current data version of an input without partitions."""
    last = _last(parent, instance)
    return (
        (extract_data_version_from_entry(last.event_log_entry) or DEFAULT_DATA_VERSION) if last else NULL_DATA_VERSION
    )


def _differs(provenance: DataProvenance, parent: dg.AssetKey, version: DataVersion) -> bool:
    if not provenance.has_input_asset(parent):
        return True
    then = provenance.input_data_versions[parent]
    # Dagster has two names for a value it did not make.
    return then != version and (then, version) != (DEFAULT_DATA_VERSION, NULL_DATA_VERSION)


def _with_changed_cells(
    graph: Any,
    key: dg.AssetKey,
    parent: dg.AssetKey,
    provenances: Mapping[Partition, DataProvenance],
    instance: dg.DagsterInstance,
) -> set[Partition]:
    """The cells with an input cell, of a partitioned input, whose content has changed since they were made."""
    input_cells = _input_cells(graph, key, parent)
    inputs_of = {cell: input_cells(cell) for cell in provenances}
    inputs_of = {
        cell: inputs
        for cell, inputs in inputs_of.items()
        if 0 < len(inputs) < SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD
    }
    stale = {cell for cell in inputs_of if not provenances[cell].has_input_asset(parent)}
    newer_at: dict[int, set[str]] = defaultdict(set)
    latest = latest_events(parent, instance, set().union(*inputs_of.values()))
    # Dagster considers an input that had no cell at all unchanged.
    made_at = {cell: provenances[cell].input_storage_ids[parent] for cell in inputs_of if cell not in stale}
    made_at = {cell: moment for cell, moment in made_at.items() if moment}
    for cell, moment in made_at.items():
        newer_at[moment] |= {name for name in inputs_of[cell] if latest.get(name, 0) > moment}
    changed = {
        moment: changed_partitions(parent, moment, instance, newer) for moment, newer in newer_at.items() if newer
    }
    return stale | {cell for cell, moment in made_at.items() if changed.get(moment, set()) & inputs_of[cell]}


def _input_cells(graph: Any, key: dg.AssetKey, parent: dg.AssetKey) -> Callable[[Partition], frozenset[str]]:
    """A function from a cell to the cells of an input it is made from, as Dagster maps them.

    A lookup takes a millisecond. Where only one of two dimensions counts, cells that share it are looked up once.
    """
    downstream, upstream = graph.get(key).partitions_def, graph.get(parent).partitions_def
    mapping = graph.get_partition_mapping(key, parent_asset_key=parent)
    position, known = None, dict[Partition, frozenset[str]]()
    to_single = isinstance(mapping, dg.MultiToSingleDimensionPartitionMapping)
    if to_single and isinstance(downstream, dg.MultiPartitionsDefinition):
        dimension_name = mapping.partition_dimension_name
        inferred = get_infer_single_to_multi_dimension_deps_result(upstream, downstream, dimension_name)
        names = [dimension.name for dimension in downstream.partitions_defs]
        assert inferred.dimension_dependency
        position = names.index(str(inferred.dimension_dependency.downstream_dimension_name))

    def input_cells(partition: Partition) -> frozenset[str]:
        shared = partition if position is None or partition is None else partition.split("|")[position]
        if shared not in known:
            subset = graph.get_parent_partition_keys_for_child(partition, parent, key).partitions_subset
            known[shared] = frozenset(map(str, subset.get_partition_keys()))
        return known[shared]

    return input_cells
