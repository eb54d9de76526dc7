"""A cell that is made from more cells than Dagster's stale status looks at."""

from collections.abc import Iterator

import dagster as dg
import pytest

from dioptra_assets.dagster_internals import CODE_VERSION_TAG, get_input_data_version_tag, get_input_event_pointer_tag
from dioptra_assets.runs.staleness import stale_cells
from dioptra_assets.runs.staleness_of_many_inputs import crowded_inputs

MANY = dg.StaticPartitionsDefinition([f"k{number}" for number in range(120)])
FEW = dg.StaticPartitionsDefinition(["a", "b"])


@dg.asset(partitions_def=MANY)
def numbers() -> None: ...


@dg.asset(partitions_def=FEW)
def names() -> None: ...


@dg.asset(deps=[numbers, names])
def report() -> None: ...


@dg.asset(partitions_def=FEW, deps=[dg.AssetDep(numbers, partition_mapping=dg.AllPartitionMapping())])
def table() -> None: ...


GRAPH = dg.Definitions([numbers, names, report, table]).resolve_asset_graph()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def make(instance: dg.DagsterInstance, asset: str, partition: str | None = None, version: str = "1") -> None:
    """Report a cell as its computation would: with its content's version and what was there when it was made."""
    tags = {"dagster/data_version": version, CODE_VERSION_TAG: "1"}
    for parent in GRAPH.get(dg.AssetKey(asset)).parent_keys:
        (record,) = instance.get_asset_records([parent]) or [None]
        event = record.asset_entry.last_materialization_record if record else None
        tags[get_input_event_pointer_tag(parent)] = str(event.storage_id) if event else "NULL"
        tags[get_input_data_version_tag(parent)] = "1" if event else "INITIAL"
    instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition, tags=tags))


def changed(instance: dg.DagsterInstance, asset: str = "report", partition: str | None = None) -> bool:
    return partition in stale_cells(GRAPH, dg.AssetKey(asset), [partition], instance)


def test_inputs_are_crowded_where_a_cell_takes_all_of_many(instance: dg.DagsterInstance) -> None:
    assert crowded_inputs(GRAPH, dg.AssetKey("report"), instance) == [dg.AssetKey("numbers")]
    assert crowded_inputs(GRAPH, dg.AssetKey("table"), instance) == [dg.AssetKey("numbers")]
    assert crowded_inputs(GRAPH, dg.AssetKey("numbers"), instance) == []


def test_another_content_of_one_of_many_cells_counts_and_the_same_content_does_not(
    instance: dg.DagsterInstance,
) -> None:
    make(instance, "numbers", "k0")
    make(instance, "numbers", "k1")
    make(instance, "report")
    assert not changed(instance)
    make(instance, "numbers", "k0")
    assert not changed(instance)
    make(instance, "numbers", "k1", "2")
    assert changed(instance)
    make(instance, "numbers", "k1", "1")
    assert not changed(instance)
    make(instance, "numbers", "k2")
    assert changed(instance)
    make(instance, "report")
    assert not changed(instance)


def test_a_partition_is_judged_by_its_own_last_computation(instance: dg.DagsterInstance) -> None:
    make(instance, "numbers", "k0")
    make(instance, "table", "a")
    make(instance, "numbers", "k0", "2")
    make(instance, "table", "b")
    assert changed(instance, "table", "a") and not changed(instance, "table", "b")


def test_what_was_made_before_its_inputs_were_is_stale(instance: dg.DagsterInstance) -> None:
    make(instance, "report")
    assert changed(instance)
