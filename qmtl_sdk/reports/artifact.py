"""Returns as one Arrow file, which a runner uploads by content hash and the service measures.

Columns `ts` (ns, UTC), `returns`, and `position:NAME` for each instrument; the rest is in the schema's
metadata under `qmtl.returns`. The file is never compressed: its size bounds what it decodes to.
"""

import json
import struct

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field

from qmtl_sdk.contracts.canonical import read_json
from qmtl_sdk.contracts.dag import MAX_INTERVAL_S, MAX_NODES
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.texts import Identifier, printable
from qmtl_sdk.data.bars import NS, iso
from qmtl_sdk.reports.returns import Returns

# The key of the schema's metadata.
_META = b"qmtl.returns"

# What the name of a position's column begins with.
_POSITION = "position:"

# The largest return of a bar, as a fraction.
_MAX_RETURN = 1000.0

# The largest equity, and the inverse of the smallest, that returns may compound to from 1.
_MAX_EQUITY = 1e100

# The largest absolute position, where 1 is the whole of an instrument's share.
_MAX_POSITION = 1000.0

# Columns: the times, the returns, and a position for each node of the largest DAG.
_MAX_COLUMNS = 2 + MAX_NODES

# Bytes before an Arrow file's messages: the mark of its format and its padding.
_MAGIC = b"ARROW1\0\0"

# Bytes of a value: all columns are int64 or float64. Other types can hold rows that take no bytes of a file.
_VALUE_BYTES = 8

# What reading a file that someone damaged may raise.
_UNREADABLE = (
    pa.ArrowException,
    ArithmeticError,
    AttributeError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
)

# Characters of an error of a reader to show.
_SHOWN = 300

# Places in the tables of Arrow's message format: a message's header, and a record batch's compression.
_HEADER_FIELD = 2
_COMPRESSION_FIELD = 3


class _Meta(Model):
    """What an artifact's metadata holds; fields of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    interval: int = Field(gt=0, le=MAX_INTERVAL_S)
    weights: dict[str, float] = Field(max_length=MAX_NODES)
    price_streams: tuple[Identifier, ...] = Field(max_length=MAX_NODES)
    instruments: dict[str, Identifier] = Field({}, max_length=MAX_NODES)
    carried: int = Field(0, ge=0)


def encode(returns: Returns) -> bytes:
    """Encode returns as an Arrow file."""
    columns: dict[str, np.ndarray] = {"ts": returns.ts, "returns": returns.values}
    columns |= {_POSITION + name: np.asarray(held, "float64") for name, held in returns.positions.items()}
    meta = {
        "interval": returns.interval,
        "weights": returns.weights,
        "price_streams": returns.price_streams,
        "instruments": returns.instruments,
        "carried": returns.carried,
    }
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta, sort_keys=True).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    artifact: bytes = sink.getvalue().to_pybytes()
    return artifact


def decode(data: bytes) -> Returns:
    """Decode and check returns. Raises QmtlError (E_RETURNS_INVALID) with the fault and its place."""
    try:
        table = _read(data)
        meta = _Meta.model_validate(read_json((table.schema.metadata or {})[_META]))
        ts = _column(table, "ts", "int64")
        values = _column(table, "returns", "float64")
        positions = {
            name.removeprefix(_POSITION): _column(table, name, "float64")
            for name in table.column_names
            if name.startswith(_POSITION)
        }
        returns = Returns(
            ts,
            values,
            meta.interval,
            positions,
            meta.weights,
            meta.price_streams,
            meta.instruments,
            meta.carried,
        )
    except _UNREADABLE as error:
        why = printable(" ".join(str(error).split()), _SHOWN)
        raise _invalid(f"the artifact is not a table of returns: {why}") from error
    if not len(ts):
        raise _invalid("the artifact has no returns")
    if (np.diff(ts) < returns.interval * NS).any() or returns.interval <= 0:
        raise _invalid("the times of the returns do not go up by at least their interval")
    for name, column in {"returns": values, **positions}.items():
        if not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise _invalid(f"{name} is missing or infinite at {iso(int(ts[row]))}")
    if (values <= -1).any():
        row = int(np.flatnonzero(values <= -1)[0])
        raise _invalid(f"a return of {values[row]:g} at {iso(int(ts[row]))} loses all there is")
    _check_range(returns)
    if values[0] != 0:
        raise _invalid("the first return is not 0")
    if set(returns.weights) != set(positions):
        raise _invalid("weights and positions name different instruments")
    if returns.instruments and set(returns.instruments) != set(positions):
        raise _invalid("instruments and positions name different instruments")
    return returns


def _check_range(returns: Returns) -> None:
    """Refuse values that no market has, and for which metrics would overflow."""
    for name, column, limit in (
        ("a return", returns.values, _MAX_RETURN),
        *((f"the position of {name[:40]}", held, _MAX_POSITION) for name, held in returns.positions.items()),
    ):
        beyond = np.flatnonzero(np.abs(column) > limit)
        if len(beyond):
            row = int(beyond[0])
            raise _invalid(
                f"{name} is {column[row]:g} at {iso(int(returns.ts[row]))}; {limit:g} is the largest allowed"
            )
    growth = np.abs(np.cumsum(np.log1p(returns.values)))
    beyond = np.flatnonzero(growth > np.log(_MAX_EQUITY))
    if len(beyond):
        at = iso(int(returns.ts[int(beyond[0])]))
        raise _invalid(
            f"the returns compound to more than {_MAX_EQUITY:g} times, or less than its inverse, at {at}"
        )
    if not all(abs(weight) <= 1 for weight in returns.weights.values()):
        raise _invalid("a weight is not between -1 and 1")


def _read(data: bytes) -> pa.Table:
    """Read the table, which takes no more memory than the file.

    The messages are read in their order, since the file's index may name one of them many times.
    """
    if not data.startswith(_MAGIC):
        raise _invalid("the artifact is not an Arrow file")
    messages = iter(pa.ipc.MessageReader.open_stream(pa.py_buffer(data)[len(_MAGIC) :]))
    first = next(messages, None)
    if first is None or first.type != "schema":  # pyarrow crashes the process on a message of another type
        raise _invalid("the artifact has no schema")
    schema = pa.ipc.read_schema(first)
    if len(schema) > _MAX_COLUMNS:
        raise _invalid(f"the artifact has {len(schema)} columns; {_MAX_COLUMNS} are allowed")
    for field in schema:
        if field.type not in (pa.int64(), pa.float64()):
            raise _invalid(f"column {field.name[:40]!r} is {str(field.type)[:40]}, not int64 or float64")
    batches = []
    values = 0
    for message in messages:
        if message.type != "record batch":
            raise _invalid(f"the artifact has a message of type {message.type!r}")
        if _is_compressed(message):
            raise _invalid("the artifact is compressed: what it decodes to has no limit")
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate()
        values += batch.num_rows * len(schema)
        if values * _VALUE_BYTES > len(data):
            raise _invalid(
                f"the artifact has {len(data)} bytes and decodes to {values * _VALUE_BYTES} or more"
            )
        batches.append(batch)
    return pa.Table.from_batches(batches, schema)


def _is_compressed(message: pa.ipc.Message) -> bool:
    """Read whether a record batch is compressed from its metadata, a flatbuffer: pyarrow doesn't tell."""
    metadata = message.metadata.to_pybytes()
    root = struct.unpack_from("<I", metadata)[0]
    header = _field(metadata, root, _HEADER_FIELD)
    if not header:
        raise _invalid("the artifact has a message without a header")
    table = header + struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, table, _COMPRESSION_FIELD) > 0


def _field(buffer: bytes, table: int, field: int) -> int:
    """Return where a field of a flatbuffer's table is stored; 0 where the table lacks it."""
    fields = table - struct.unpack_from("<i", buffer, table)[0]
    if fields < 0 or 4 + 2 * field >= struct.unpack_from("<H", buffer, fields)[0]:
        return 0
    offset = struct.unpack_from("<H", buffer, fields + 4 + 2 * field)[0]
    return table + int(offset) if offset else 0


def _column(table: pa.Table, name: str, dtype: str) -> np.ndarray:
    return np.asarray(table.column(name).combine_chunks().to_numpy(zero_copy_only=False), dtype=dtype)


def _invalid(what: str) -> QmtlError:
    return QmtlError("E_RETURNS_INVALID", what, "upload what the SDK's engine computed")
