"""Rows of a table as a Parquet file, and back."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Boolean, Column, Float, Integer, Table

# A row by column. (Any: the values of whatever table.)
Row = Mapping[str, Any]

_TYPES = ((Boolean, pa.bool_()), (Integer, pa.int64()), (Float, pa.float64()))


def encode(table: Table, rows: Sequence[Row]) -> bytes:
    """Encode rows with all columns of their table. Raises ValueError where a value has another type."""
    schema = pa.schema([(column.name, _type(column)) for column in table.columns])
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(list(map(dict, rows)), schema), buffer, compression="zstd")
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return buffer.getvalue()


def decode(data: bytes, **equal: str) -> list[dict[str, Any]]:
    """Decode the rows whose columns have these values. Raises ValueError where it is no Parquet file."""
    try:
        found = pq.read_table(pa.BufferReader(data))
        for name, value in equal.items():
            found = found.filter(pc.equal(found[name], value))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(str(error)) from error
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def _type(column: "Column[Any]") -> pa.DataType:
    return next((found for kind, found in _TYPES if isinstance(column.type, kind)), pa.string())
