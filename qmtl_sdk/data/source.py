"""Files of bars: CSV and Parquet, read with their faults named.

A file has a time column (`ts`, `timestamp`, `time`, `datetime` or `date`) and number columns; header case
does not matter. A file of several streams has a column `symbol`. Times without a zone are UTC; whole numbers
are seconds, milliseconds, microseconds or nanoseconds by size. What could be read in two ways is refused, not
guessed: dates with the day or the month first, numbers with thousands separators.
"""

import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pyarrow import ArrowException

from qmtl_sdk.contracts.durations import seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import Bars, checked
from qmtl_sdk.data.roots import resolved, restricted, shown, shown_names

TIME_COLUMNS = ("ts", "timestamp", "time", "datetime", "date")
SYMBOL = "symbol"

# Texts that the parser of times would read, each with what makes them unclear.
_UNCLEAR_TIMES = (
    (re.compile(r"\s*\d{1,2}[./-]\d{1,2}[./-]\d"), "may have the day or the month first"),
    (re.compile(r"\s*\d{1,2}:\d"), "has no date"),
)
# Texts that a person reads as numbers: 1,234.5 and 1 234,5, with a currency or per cent.
_LIKE_A_NUMBER = re.compile(r"\s*[-+(]?\s*[$€£¥]?\s*\d[\d\s.,'’]*[%)]?\s*")


class Source(Protocol):
    """The bars of a StreamInput that an author hands over. `identity` enters its NodeID."""

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that identify the source."""

    def read(self) -> Bars:
        """Read all bars."""


class FileSource:
    """One stream of a CSV or Parquet file."""

    kind = ""

    def __init__(self, path: str | Path, *, interval: "int | str", symbol: str | None = None) -> None:
        self.path = str(path)
        self.interval = seconds(interval)
        self.symbol = symbol

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, **({"symbol": self.symbol} if self.symbol else {})}

    def read(self) -> Bars:
        """Read all bars. Raises QmtlError: E_DATA_NOT_FOUND, E_DATA_SCHEMA and those of `checked`."""
        return _bars(file_state(self), self.interval, self.symbol, Path(self.path).name)


class CsvSource(FileSource):
    kind = "csv"


class ParquetSource(FileSource):
    kind = "parquet"


def streams_in(source: FileSource) -> tuple[str, ...]:
    """List the streams of a file by its column `symbol`; empty where it has none.

    Raises QmtlError as `read`.
    """
    frame = _table(file_state(source))
    return tuple(map(str, frame[SYMBOL].unique())) if SYMBOL in frame else ()


class _FileState(NamedTuple):
    """A file in one state: once it changes, cached reads no longer apply."""

    kind: str
    path: str
    version: tuple[int, int]  # time of change (ns), size


@lru_cache(maxsize=256)
def _bars(state: _FileState, interval: int, symbol: str | None, where: str) -> Bars:
    """Read one stream of a file. Cached, because every submission reads the data of its world."""
    frame = _table(state)
    if symbol is not None:
        if SYMBOL not in frame:
            raise QmtlError(
                "E_DATA_SCHEMA",
                f"{where} has no column {SYMBOL}, but its stream {symbol!r} is requested",
                "add the column, or use one file for each stream, with {stream} in the path",
            )
        frame = frame.iloc[_rows(state).get(symbol, [])]
        where = f"{where} ({symbol})"
    elif SYMBOL in frame and frame[SYMBOL].nunique() > 1:
        names = shown_names(frame[SYMBOL].unique()[:8])
        raise QmtlError("E_DATA_SCHEMA", f"{where} holds several streams ({names})", "name one with symbol=")
    return checked(Bars(_times(frame, where), _numbers(frame, where), interval), where)


def file_state(source: FileSource) -> _FileState:
    """Return the present state of a source's file.

    Raises QmtlError: E_DATA_NOT_FOUND where there is none, or it is no regular file; E_DATA_FORBIDDEN.
    """
    file = resolved(source.path)
    try:
        found = file.stat()
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise QmtlError(
            "E_DATA_NOT_FOUND", f"there is no file {source.path[:200]!s}", "check the path", path=source.path
        ) from error
    if not stat.S_ISREG(found.st_mode):  # reading a device or a pipe may never end
        raise QmtlError("E_DATA_NOT_FOUND", f"{source.path[:200]} is no regular file", "name a file")
    return _FileState(source.kind, str(file), (found.st_mtime_ns, found.st_size))


def _reason(error: Exception) -> str:
    found = str(error).splitlines()
    return f": {found[0]}" if found and not restricted() else ""


@lru_cache(maxsize=16)
def _table(state: _FileState) -> pd.DataFrame:
    """Read a file as a frame with lower-case headers."""
    kind = state.kind
    path = state.path
    name = Path(path).name
    try:
        frame = _parquet(path) if kind == "parquet" else pd.read_csv(path)
    except pd.errors.EmptyDataError as error:
        raise QmtlError("E_DATA_EMPTY", f"{name} is empty", "check the file") from error
    except (ArrowException, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise QmtlError(
            "E_DATA_SCHEMA",
            f"{name} is not {'Parquet' if kind == 'parquet' else 'CSV'}{_reason(error)}",
            "check the file and the preset's source",
        ) from error
    frame = frame.reset_index() if frame.index.name else frame
    frame.columns = [str(column).strip().lower().replace(" ", "_") for column in frame.columns]
    return frame


@lru_cache(maxsize=16)
def _rows(state: _FileState) -> dict[str, Any]:
    """Find the rows of each stream of a file, once for all of them. (Any: arrays of row numbers.)"""
    found: dict[Any, Any] = dict(_table(state).groupby(SYMBOL, sort=False).indices)
    return found


def _parquet(path: str) -> pd.DataFrame:
    """Read one file on this thread.

    `read_table` loads a data set engine and a pool of threads, which cost a service more memory than its
    data.
    """
    with pq.ParquetFile(path) as file:
        frame: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    return frame


def _times(frame: pd.DataFrame, where: str) -> np.ndarray:
    column = next((name for name in TIME_COLUMNS if name in frame), None)
    if column is None:
        raise _no_time_column(frame, where)
    values = frame[column]
    if pd.api.types.is_numeric_dtype(values):
        parsed = pd.to_datetime(values, unit=_unit(values), utc=True, errors="coerce")
    else:
        _require_clear(values, column, where)
        parsed = pd.to_datetime(
            values,
            utc=True,
            errors="coerce",
            format=None if pd.api.types.is_datetime64_any_dtype(values) else "mixed",
        )
    bad = np.flatnonzero(parsed.isna().to_numpy())
    if len(bad):
        row = int(bad[0])
        raise QmtlError(
            "E_DATA_SCHEMA",
            f"{where}: {shown(values.iloc[row])} in {column} is not a time (row {row + 1})",
            "write times like 2024-01-31T14:00:00Z",
            row=row + 1,
        )
    times: np.ndarray = parsed.astype("datetime64[ns, UTC]").astype("int64").to_numpy()
    return times


def _no_time_column(frame: pd.DataFrame, where: str) -> QmtlError:
    mark = next((mark for mark in ";\t|" if len(frame.columns) == 1 and mark in frame.columns[0]), "")
    if mark:
        return QmtlError(
            "E_DATA_SCHEMA", f"{where} separates its columns by {mark!r}", "separate them by commas"
        )
    return QmtlError(
        "E_DATA_SCHEMA",
        f"{where} has no time column (its columns: {shown_names(frame.columns)})",
        f"name one of them {', '.join(TIME_COLUMNS)}",
    )


def _require_clear(values: "pd.Series[Any]", column: str, where: str) -> None:
    """Refuse texts that stand for several times: a day and a month that are mixed up scramble the bars."""
    for pattern, why in _UNCLEAR_TIMES:
        for row, value in enumerate(values):
            if isinstance(value, str) and pattern.match(value):
                raise QmtlError(
                    "E_DATA_SCHEMA",
                    f"{where}: {shown(value)} in {column} {why} (row {row + 1})",
                    "write times like 2024-01-31T14:00:00Z, in one column",
                    row=row + 1,
                )


def _unit(values: "pd.Series[Any]") -> Literal["s", "ms", "us", "ns"]:
    """Guess the unit of whole-number times from the largest: each limit is a time in the year 5138."""
    largest = float(values.abs().max()) if len(values) else 0.0
    if largest < 1e11:
        return "s"
    if largest < 1e14:
        return "ms"
    return "us" if largest < 1e17 else "ns"


def _numbers(frame: pd.DataFrame, where: str) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for name in frame.columns:
        if name in TIME_COLUMNS or name == SYMBOL:
            continue
        values = frame[name]
        numbers = pd.to_numeric(values, errors="coerce")
        broken = np.flatnonzero((numbers.isna() & values.notna()).to_numpy())
        if len(broken) == len(values) and len(values) and not _LIKE_A_NUMBER.fullmatch(str(values.iloc[0])):
            continue  # a column of text, such as a comment
        if len(broken):
            row = int(broken[0])
            raise QmtlError(
                "E_DATA_SCHEMA",
                f"{where}: {shown(values.iloc[row])} in {shown_names([name])} is no number (row {row + 1})",
                "mend the value, or leave it empty",
                row=row + 1,
                column=shown_names([name]),
            )
        columns[name] = numbers.to_numpy(dtype="float64")
    if not columns:
        raise QmtlError("E_DATA_SCHEMA", f"{where} has no column of numbers", "add one, such as close")
    return columns
