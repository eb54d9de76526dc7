import hashlib
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.util import hash_pandas_object

from resources.store import Cell, CellStore
from resources.tables import from_parquet, packed, read_table, read_tables, table_hash, to_parquet, write_table
from tests.resources.test_store import snapshot

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
CELL = Cell("digits/evasion_examples", {"architecture": "le_net", "attack": "fgm_0.3"})


def example_table() -> pd.DataFrame:
    """The kinds of columns that our tables have."""
    return pd.DataFrame(
        {
            "image_id": ["a/1.png", "ü 2", "三", ""],
            "label": np.array([0, 1, 2, 3], np.int64),
            "confidence": np.array([0.1, 0.25, 1 / 3, 1], np.float32),
            "distance": np.array([0.0, np.nan, np.inf, 1e-300]),
            "success": pd.array([True, None, False, True], dtype="boolean"),
            "target_class": pd.array([None, 1, 2, None], dtype="Int64"),
            "zero_gradient": [True, False, False, True],
            "defence": ["none", None, "jpeg", "none"],
            "probabilities": list(np.arange(12, dtype=np.float32).reshape(4, 3) / 7),
        }
    )


def test_the_hash_of_a_table_is_that_of_pandas_for_each_column() -> None:
    table = example_table().assign(kind=pd.Categorical(["a", "b", None, "a"]), nothing=None)
    digest = hashlib.sha256(b"4\0")
    for name in table:
        digest.update(f"{name}\0{table[name].dtype}\0".encode())
        if name == "probabilities":
            digest.update(b"".join(b"float32(3,)" + row.tobytes() for row in table[name]))
        else:
            digest.update(hash_pandas_object(table[name], index=False).to_numpy().tobytes())
    assert table_hash(table) == digest.hexdigest()
    assert table_hash(table.set_index(pd.Index([5, 5, 6, 7]))) == digest.hexdigest()


def test_a_table_is_read_as_pandas_reads_it() -> None:
    content = to_parquet(example_table())
    pd.testing.assert_frame_equal(from_parquet(content), pd.read_parquet(io.BytesIO(content)))


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(str(tmp_path / "store"))


def test_a_table_is_read_as_it_was_written(store: CellStore):
    stored = write_table(store.at(CELL), example_table(), attributes={"seed": 7})
    read = read_table(store.open(CELL))
    pd.testing.assert_frame_equal(read, example_table())
    assert (
        np.stack(read["probabilities"].tolist()).tobytes()
        == np.stack(example_table()["probabilities"].tolist()).tobytes()
    )
    assert stored.manifest.attributes == {"rows": 4, "seed": 7}


@pytest.mark.parametrize("last", [{}, {"defence": [None] * 4, "target_class": None}], ids=["alike", "an empty column"])
def test_many_tables_are_read_as_one_by_one(store: CellStore, last: dict[str, Any]):
    tables = [example_table().assign(label=number) for number in range(3)]
    tables[-1] = tables[-1].assign(**last)
    cells = [Cell(CELL.asset, {**CELL.partition, "attack": f"fgm_{number}"}) for number in range(3)]
    stored = [write_table(store.at(cell), table) for cell, table in zip(cells, tables, strict=True)]
    one_by_one = pd.concat([read_table(one) for one in stored], ignore_index=True)
    assert table_hash(read_tables(stored)) == table_hash(one_by_one)
    some = ["defence", "label"]
    assert table_hash(read_tables(stored, some)[some]) == table_hash(one_by_one[some])


def test_writing_a_table_that_was_read_changes_no_byte(store: CellStore):
    first = write_table(store.at(CELL), example_table())
    before = snapshot(Path(store.url))
    again = write_table(store.at(CELL), read_table(store.open(CELL)))
    assert again.version == first.version
    assert snapshot(Path(store.url)) == before


@pytest.mark.parametrize("name", list(example_table().columns))
@pytest.mark.parametrize("rows", [4, 1, 0])
def test_a_column_read_back_has_the_hash_it_was_written_with(name: str, rows: int):
    table = example_table()[[name]][:rows]
    assert table_hash(from_parquet(to_parquet(table))) == table_hash(table)


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pd.array([None, None], dtype="Int64"), id="no number at all"),
        pytest.param([None, None], id="nothing at all"),
        pytest.param([None, np.array([1.0, 2.0], np.float32)], id="an array after none"),
        pytest.param([np.array([1.0], np.float32), np.array([1.0, 2.0], np.float32)], id="arrays of two lengths"),
        pytest.param(pd.Categorical(["a", "b"]), id="categories"),
    ],
)
def test_unusual_columns_keep_their_hash_too(column: object):
    table = pd.DataFrame({"column": column})
    assert table_hash(from_parquet(to_parquet(table))) == table_hash(table)


def test_a_type_that_parquet_changes_is_hashed_as_readers_get_it(store: CellStore):
    """Whole numbers beside a None come back as floats, lists as arrays: no reason to be stale at the next write."""
    table = pd.DataFrame({"n": pd.Series([1, None], dtype=object), "list": [[1.0], [2.0, 3.0]]})
    content, version = packed(table)
    assert table_hash(from_parquet(content)) == version
    first = write_table(store.at(CELL), table)
    again = write_table(store.at(CELL), read_table(store.open(CELL)))
    assert again.version == first.version


def test_the_hash_tells_tables_apart():
    base = pd.DataFrame({"a": np.array([1, 2], np.int64), "b": ["x", "y"]})
    lists = pd.DataFrame({"a": list(np.array([[1, 2], [3, 4]], np.float32))})
    tables = {
        "base": base,
        "a value": base.assign(a=[1, 3]),
        "text": base.assign(b=["x", "z"]),
        "missing text": base.assign(b=pd.Series(["x", None])),
        "the text None": base.assign(b=["x", "None"]),
        "the text nan": base.assign(b=["x", "nan"]),
        "a narrower type": base.astype({"a": np.int32}),
        "floats": base.astype({"a": float}),
        "floats with none": base.assign(a=[1.0, np.nan]),
        "nullable": base.astype({"a": "Int64"}),
        "nullable with none": base.assign(a=pd.array([1, None], dtype="Int64")),
        "nullable with zero": base.assign(a=pd.array([1, 0], dtype="Int64")),
        "order of columns": base[["b", "a"]],
        "order of rows": base[::-1],
        "a column's name": base.rename(columns={"a": "c"}),
        "a column less": base[["a"]],
        "a row less": base[:1],
        "no row": base[:0],
        "lists": lists,
        "a value in a list": pd.DataFrame({"a": list(np.array([[1, 2], [3, 5]], np.float32))}),
        "wider lists": pd.DataFrame({"a": list(np.array([[1, 2], [3, 4]], np.float64))}),
        "the same numbers in one row": pd.DataFrame({"a": [np.array([1, 2, 3, 4], np.float32)]}),
        "the same numbers cut elsewhere": pd.DataFrame(
            {"a": [np.array([1, 2, 3], np.float32), np.array([4], np.float32)]}
        ),
        "a missing list": pd.DataFrame({"a": [np.array([1, 2], np.float32), None]}),
    }
    hashes = {name: table_hash(table) for name, table in tables.items()}
    assert len(set(hashes.values())) == len(hashes), hashes


def test_row_labels_are_no_part_of_the_hash():
    table = example_table()
    assert table_hash(table.set_index(pd.Index(list("wxyz")))) == table_hash(table)
    assert table_hash(table[::-1][::-1]) == table_hash(table)


def test_another_process_computes_the_same_hash():
    """Python salts the hashes of text anew in every process."""
    code = """
        from resources.tables import table_hash
        from tests.resources.test_tables import example_table
        print(table_hash(example_table()))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout.strip() == table_hash(example_table())


def test_a_table_that_parquet_cannot_hold_leaves_the_old_one(store: CellStore):
    write_table(store.at(CELL), example_table())
    with pytest.raises(Exception, match="Conversion failed for column mixed"):
        write_table(store.at(CELL), pd.DataFrame({"mixed": [1, "x"]}))
    pd.testing.assert_frame_equal(read_table(store.open(CELL)), example_table())
