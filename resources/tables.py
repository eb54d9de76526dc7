"""Tables: one Parquet file per cell."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from pandas.util import hash_array

from resources.store import READERS, Destination, StoredCell, sha256

KIND = "table"
FILE = "table.parquet"


def write_table(
    destination: Destination,
    table: pd.DataFrame,
    *,
    attributes: Mapping[str, Any] | None = None,
) -> StoredCell:
    """Store a table; its data version is the hash of its columns, values and attributes, which later tables repeat."""
    content, version = packed(table)
    if attributes:
        version = sha256(f"{version}{json.dumps(attributes, sort_keys=True)}".encode())
    with destination.writer(KIND) as writer:
        writer.put(FILE, content)
        return writer.commit(version, {"rows": len(table), **(attributes or {})})


def read_table(stored: StoredCell) -> pd.DataFrame:
    """The table of a cell."""
    return from_parquet(stored.read(FILE))


def read_tables(stored: Sequence[StoredCell], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The tables of several cells as one, or some of their columns; the same as reading each and concatenating.

    Several are read at a time, and joined before pandas sees them: for small tables the conversion takes longest.
    """

    def read(cell: StoredCell) -> Any:
        return _arrow_table(cell.read(FILE), columns)

    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(read, stored))
    # A column that is empty in one table may have another type there, and pandas has its own rules to join them.
    if all(table.schema.equals(tables[0].schema, check_metadata=True) for table in tables):
        return import_module("pyarrow").concat_tables(tables).to_pandas()
    return pd.concat([table.to_pandas() for table in tables], ignore_index=True)


def packed(table: pd.DataFrame) -> tuple[bytes, str]:
    """A table as Parquet, and the hash of the table that reading it back gives.

    Types that Parquet does not know (an integer beside a None) come back as others, so what readers get is hashed.
    """
    content = to_parquet(table)
    return content, table_hash(from_parquet(content))


def to_parquet(table: pd.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def from_parquet(content: bytes) -> pd.DataFrame:
    """The table in the bytes of a Parquet file."""
    return _arrow_table(content).to_pandas()


def _arrow_table(content: bytes, columns: Sequence[str] | None = None) -> Any:
    """A table as pyarrow, which has no types, holds it; some of its columns, or all."""
    # As `pd.read_parquet`, which first looks for further files and takes twice as long over a small one.
    parquet: Any = import_module("pyarrow.parquet")
    return parquet.ParquetFile(io.BytesIO(content)).read(columns, use_threads=False)


def table_hash(table: pd.DataFrame) -> str:
    """SHA-256 of names, types and values in their order, without row labels; the same for equal tables."""
    digest = hashlib.sha256(f"{len(table)}\0".encode())
    for name in table.columns:
        column = table[name]
        digest.update(f"{name}\0{column.dtype}\0".encode())
        if column.dtype == object and _holds_arrays(column):
            for value in column:
                digest.update(b"\0" if value is None else f"{value.dtype}{value.shape}".encode() + value.tobytes())
        else:
            # `hash_pandas_object` without the table of hashes that it makes of each column.
            values = column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array
            digest.update(hash_array(values).tobytes())
    return digest.hexdigest()


def _holds_arrays(column: "pd.Series[Any]") -> bool:
    present = column.notna().to_numpy()
    return bool(present.any()) and isinstance(column.iloc[int(present.argmax())], np.ndarray)
