"""Returns as one Arrow file, which a runner uploads by content hash and the service measures.

Columns `ts` (ns, UTC), `returns`, and `position:NAME` for each instrument; the rest is in the schema's
metadata under `qmtl.returns`.
"""

import json

import numpy as np
import pyarrow as pa

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS, iso
from qmtl_sdk.reports.returns import Returns

# The key of the schema's metadata.
_META = b"qmtl.returns"

# What the name of a position's column begins with.
_POSITION = "position:"


def encode(returns: Returns) -> bytes:
    """Encode returns as an Arrow file."""
    columns: dict[str, np.ndarray] = {"ts": returns.ts, "returns": returns.values}
    columns |= {_POSITION + name: values for name, values in returns.positions.items()}
    meta = {"interval": returns.interval, "weights": returns.weights, "price_streams": returns.price_streams}
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta, sort_keys=True).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    artifact: bytes = sink.getvalue().to_pybytes()
    return artifact


def decode(data: bytes) -> Returns:
    """Decode and check returns. Raises QmtlError (E_RETURNS_INVALID) with the fault and its place."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        meta = json.loads((table.schema.metadata or {})[_META])
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
            int(meta["interval"]),
            positions,
            {str(k): float(v) for k, v in meta["weights"].items()},
            tuple(meta["price_streams"]),
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _invalid(f"the artifact is not a table of returns: {error}") from error
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
    if values[0] != 0:
        raise _invalid("the first return is not 0")
    if set(returns.weights) != set(positions):
        raise _invalid("weights and positions name different instruments")
    return returns


def _column(table: pa.Table, name: str, dtype: str) -> np.ndarray:
    return np.asarray(table.column(name).combine_chunks().to_numpy(zero_copy_only=False), dtype=dtype)


def _invalid(what: str) -> QmtlError:
    return QmtlError("E_RETURNS_INVALID", what, "upload what the SDK's engine computed")
