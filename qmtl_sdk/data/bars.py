"""Bars: opening times and columns of numbers, checked once when they are read.

A bar is stamped with the UTC time at which it opens and can be seen once it has closed, at `ts + interval`.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
from blake3 import blake3

from qmtl_sdk.contracts.errors import QmtlError

NS = 1_000_000_000

CLOSE = "close"
"""The column of closing prices: what returns, orders and checks of data read."""


@dataclass(frozen=True)
class Bars:
    """Bars of one stream.

    `ts` are opening times (int64, ns UTC, ascending), `columns` float64 arrays of the same length, `interval`
    is in seconds.
    """

    ts: np.ndarray
    columns: dict[str, np.ndarray]
    interval: int

    def __len__(self) -> int:
        return len(self.ts)

    @cached_property
    def closes(self) -> np.ndarray:
        """Times at which the bars close and become visible (int64, ns UTC)."""
        return self.ts + self.interval * NS

    def until(self, as_of: datetime | None) -> "Bars":
        """Return the bars that have closed by `as_of`."""
        if as_of is None:
            return self
        return self.rows(0, int(np.searchsorted(self.closes, to_ns(as_of), side="right")))

    def rows(self, start: int, end: int) -> "Bars":
        """Return the bars of a range of rows, without copying."""
        if start == 0 and end == len(self):
            return self
        columns = {name: values[start:end] for name, values in self.columns.items()}
        return Bars(self.ts[start:end], columns, self.interval)

    def only(self, fields: "list[str]") -> "Bars":
        """Return the bars with these columns only. Raises QmtlError (E_COLUMN_MISSING)."""
        missing = [name for name in fields if name not in self.columns]
        if missing:
            raise QmtlError(
                "E_COLUMN_MISSING",
                f"the data has no column {', '.join(missing)}",
                f"it has: {', '.join(self.columns)}",
            )
        return Bars(self.ts, {name: self.columns[name] for name in fields}, self.interval)


def to_ns(moment: datetime) -> int:
    """Convert a time to nanoseconds since 1970 (UTC)."""
    delta = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * NS + delta.microseconds * 1000


def from_ns(ns: int) -> datetime:
    """Convert nanoseconds since 1970 to a UTC time, to the microsecond."""
    return datetime.fromtimestamp(ns // NS, UTC).replace(microsecond=ns % NS // 1000)


def iso(ns: int) -> str:
    """Format nanoseconds since 1970 as ISO 8601 in UTC."""
    return from_ns(ns).isoformat().replace("+00:00", "Z")


def checked(bars: Bars, where: str) -> Bars:
    """Return the bars if they can be computed on. `where` names them in errors.

    Raises QmtlError: E_DATA_EMPTY, E_DATA_UNSORTED, E_DATA_DUPLICATE, E_DATA_MISALIGNED, E_DATA_SCHEMA.
    """
    if not len(bars):
        raise QmtlError("E_DATA_EMPTY", f"{where} has no bars", "check the file, and the requested range")
    steps = np.diff(bars.ts)
    if (steps == 0).any():
        row = int(np.flatnonzero(steps == 0)[0]) + 1
        raise QmtlError(
            "E_DATA_DUPLICATE",
            f"{where} has two bars at {iso(int(bars.ts[row]))} (row {row + 1})",
            "keep one of them",
            row=row + 1,
        )
    if (steps < 0).any():
        row = int(np.flatnonzero(steps < 0)[0]) + 1
        raise QmtlError(
            "E_DATA_UNSORTED",
            f"{where} goes back in time at {iso(int(bars.ts[row]))} (row {row + 1})",
            "sort the rows by time",
            row=row + 1,
        )
    if (steps < bars.interval * NS).any():
        row = int(np.flatnonzero(steps < bars.interval * NS)[0]) + 1
        raise QmtlError(
            "E_DATA_MISALIGNED",
            f"{where} has bars {int(steps[row - 1]) / NS:g} s apart at {iso(int(bars.ts[row]))}, "
            f"closer than its interval of {bars.interval} s",
            "name the interval of the data",
            row=row + 1,
        )
    for name, values in bars.columns.items():
        if np.isinf(values).any():
            row = int(np.flatnonzero(np.isinf(values))[0])
            raise QmtlError(
                "E_DATA_SCHEMA",
                f"{where}: {name} is infinite at {iso(int(bars.ts[row]))} (row {row + 1})",
                "mend the value, or leave it empty",
                row=row + 1,
            )
    return bars


def fingerprint(streams: dict[str, Bars]) -> str:
    """Hash the canonical content of streams with BLAKE3.

    Streams and columns are sorted by name, each with its length; times and values are little-endian bytes.
    """
    digest = blake3()
    for name in sorted(streams):
        bars = streams[name]
        _put(digest, name.encode())
        digest.update(np.array([bars.interval, len(bars)], dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(bars.ts, dtype="<i8").tobytes())
        for column in sorted(bars.columns):
            values = np.array(bars.columns[column], dtype="<f8")
            values[np.isnan(values)] = np.nan  # one NaN, whatever its bits
            _put(digest, column.encode())
            digest.update((values + 0.0).tobytes())  # -0.0 + 0.0 is 0.0
    return "blake3:" + digest.hexdigest()


def combined(fingerprints: "list[str]") -> str:
    """Combine the fingerprints of the data sets of a run, in any order."""
    unique = sorted(set(fingerprints))
    if len(unique) == 1:
        return unique[0]
    digest = blake3()
    for item in unique:
        _put(digest, item.encode())
    return "blake3:" + digest.hexdigest()


def _put(digest: "blake3", data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)
