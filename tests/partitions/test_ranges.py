"""Ranges of cells: every wanted cell in exactly one, and nothing else in any."""

import time

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.ranges import ranges

pytestmark = pytest.mark.quick

ROWS, COLUMNS = [f"n{number}" for number in range(4)], [f"k{number}" for number in range(6)]
CELLS = [(row, column) for row in ROWS for column in COLUMNS]


@given(st.sets(st.sampled_from(CELLS)), st.none() | st.integers(1, 30))
def test_wanted_cells_are_cut_into_ranges_as_dagster_understands_them(
    wanted: set[tuple[str, str]], most: int | None
) -> None:
    by_name = {"architecture": dg.StaticPartitionsDefinition(ROWS), "attack": dg.StaticPartitionsDefinition(COLUMNS)}
    definition = dg.MultiPartitionsDefinition(by_name)
    cut = list(ranges([ROWS, COLUMNS], wanted, most))
    for cells in cut:
        assert len(cells) <= (most or len(CELLS))
        ends = dg.PartitionKeyRange("|".join(cells[0]), "|".join(cells[-1]))
        assert sorted(definition.get_partition_keys_in_range(ends)) == sorted("|".join(cell) for cell in cells)
    taken = [cell for cells in cut for cell in cells]
    assert len(taken) == len(wanted) and set(taken) == wanted


@given(st.sets(st.sampled_from(COLUMNS)), st.none() | st.integers(1, 10))
def test_one_dimension_is_cut_where_keys_are_not_neighbours(wanted: set[str], most: int | None) -> None:
    cut = list(ranges([COLUMNS], {(key,) for key in wanted}, most))
    for cells in cut:
        places = [COLUMNS.index(key) for (key,) in cells]
        assert places == list(range(places[0], places[0] + len(places))) and len(places) <= (most or 10)
    assert sorted(key for cells in cut for (key,) in cells) == sorted(wanted)


def test_rows_that_want_the_same_are_taken_together() -> None:
    wanted = {(row, column) for row, column in CELLS if column != "k2"}
    assert [len(cells) for cells in ranges([ROWS, COLUMNS], wanted)] == [8, 12]


def test_ten_thousand_cells_are_cut_at_once() -> None:
    rows, columns = [f"n{number}" for number in range(100)], [f"k{number}" for number in range(100)]
    wanted = {(row, column) for i, row in enumerate(rows) for j, column in enumerate(columns) if (i + j) % 7}
    began = time.process_time()
    taken = sum(map(len, ranges([rows, columns], wanted)))
    assert taken == len(wanted) and time.process_time() - began < 1
