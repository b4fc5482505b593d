"""Market data sources: where the streams of a world's presets come from.

A preset's `source` names one: `csv`, `parquet` and `replay` are built in, and installed packages add more
with entry points of the group `qmtl.sources`.
"""

import glob
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.registry import Registry
from qmtl_sdk.contracts.worlds import Preset
from qmtl_sdk.data.bars import NS, Bars, checked, fingerprint, iso, to_ns
from qmtl_sdk.data.calendars import missing
from qmtl_sdk.data.roots import resolved
from qmtl_sdk.data.source import CsvSource, FileSource, ParquetSource, streams_in

SOURCES = Registry(
    "qmtl.sources",
    "data source",
    {
        "parquet": "qmtl_sdk.data.market:FileMarketData",
        "csv": "qmtl_sdk.data.market:FileMarketData",
        "replay": "qmtl_sdk.data.market:FileMarketData",
    },
)


@dataclass(frozen=True)
class NewBars:
    """Bars that closed after a position.

    `earlier` counts those up to it; None where the source does not know.

    A caller that sees `earlier` grow learns that bars appeared late.
    """

    bars: Bars
    earlier: int | None = None


class MarketDataSource(Protocol):
    """The streams of one preset. A process makes one from the preset, and uses it from several threads.

    Methods raise QmtlError, such as E_DATA_NOT_FOUND or E_DATA_SCHEMA, where the data cannot be read; any
    other exception becomes E_EXTENSION. Bars must pass `qmtl_sdk.data.bars.checked` and have the preset's
    interval.
    """

    def __init__(self, preset: Preset) -> None: ...

    def streams(self) -> tuple[str, ...]:
        """List the streams that the source has, whether or not the preset names them."""

    def fingerprint(self, until: datetime | None = None) -> str:
        """Return the identity of the preset's bars that closed by `until`; of all bars unless it is given.

        The same bars have the same fingerprint, `blake3:` and 64 hex digits.
        """

    def read(self, stream: str, start: datetime | None = None, end: datetime | None = None) -> Bars:
        """Read the bars of a stream that opened at or after `start` and closed by `end`."""

    def follow(self, stream: str, after: int | None, limit: int) -> NewBars:
        """Read the first `limit` bars that closed after `after` (ns since 1970 UTC).

        From the first for None.
        """


def market_data(preset: Preset) -> MarketDataSource:
    """Open the source of a preset, or return the one that is open.

    Raises QmtlError: E_EXTENSION_UNKNOWN, with the known names, where there is no such source; E_EXTENSION.
    """
    return _open(preset.model_dump_json())


@lru_cache(maxsize=256)
def _open(preset_json: str) -> MarketDataSource:
    preset = Preset.model_validate_json(preset_json)
    make = SOURCES.load(preset.source)
    if SOURCES.is_built_in(preset.source):
        source: MarketDataSource = make(preset)
        return source
    return _PackagedSource(preset, _guard(preset, lambda: make(preset)))


def require_no_gap(preset: Preset, stream: str, bars: Bars, after: int | None = None) -> None:
    """Check for missing bars where the preset forbids them; `after` is the close (ns) of the bar before.

    Raises QmtlError (E_DATA_GAP).
    """
    if preset.on_missing != "fail" or not len(bars):
        return
    if after is not None:
        bars = Bars(np.insert(bars.ts, 0, after - preset.interval * NS), {}, preset.interval)
    gaps = missing(bars, preset.calendar, 1)
    if len(gaps):
        raise QmtlError(
            "E_DATA_GAP",
            f"{preset.name}/{stream} has no bar at {iso(int(gaps[0]))}",
            "fill it from the source, or allow gaps with on_missing: skip",
        )


T = TypeVar("T")


def _guard(preset: Preset, call: Callable[[], T]) -> T:
    """Call a source of a package. An exception that is no QmtlError becomes E_EXTENSION."""
    try:
        return call()
    except QmtlError:
        raise
    except Exception as error:  # a package of others may fail in any way
        raise QmtlError(
            "E_EXTENSION",
            f"the data source {preset.source!r} of {preset.name} failed: {error!r}"[:500],
            "mend its package, or the options of the preset",
        ) from error


class _PackagedSource:
    """A source of a package, whose errors are translated and whose bars are checked."""

    def __init__(self, preset: Preset, source: MarketDataSource) -> None:
        self._preset = preset
        self._source = source

    def streams(self) -> tuple[str, ...]:
        return _guard(self._preset, self._source.streams)

    def fingerprint(self, until: datetime | None = None) -> str:
        return _guard(self._preset, lambda: self._source.fingerprint(until))

    def read(self, stream: str, start: datetime | None = None, end: datetime | None = None) -> Bars:
        return self._checked(stream, _guard(self._preset, lambda: self._source.read(stream, start, end)))

    def follow(self, stream: str, after: int | None, limit: int) -> NewBars:
        new = _guard(self._preset, lambda: self._source.follow(stream, after, limit))
        return new if not len(new.bars) else NewBars(self._checked(stream, new.bars), new.earlier)

    def _checked(self, stream: str, bars: Bars) -> Bars:
        where = f"{self._preset.name}/{stream}"
        if bars.interval != self._preset.interval:
            raise QmtlError(
                "E_DATA_MISALIGNED",
                f"{where} has bars of {bars.interval} s, and the preset says {self._preset.interval} s",
                "give the preset the interval of its source",
            )
        return checked(bars, where)


class FileMarketData:
    """Streams in CSV or Parquet files.

    The preset's `path` names one file, or one for each stream with `{stream}`.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset

    def streams(self) -> tuple[str, ...]:
        """List the streams: by path where that holds `{stream}`, else by the column `symbol`."""
        preset = self._preset
        if "{stream}" in preset.path:
            before, _, after = str(resolved(preset.path)).partition("{stream}")
            files = sorted(glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"))
            return tuple(file.removeprefix(before).removesuffix(after) for file in files)
        only = next(iter(preset.streams))
        return streams_in(self._file(only)) or (only,)

    def fingerprint(self, until: datetime | None = None) -> str:
        """Return the identity of the preset's bars, computed once for one state of its files."""
        states = tuple(_state(self._file(stream)) for stream in self._preset.streams)
        return _fingerprint(self._preset.model_dump_json(), states, until)

    def read(self, stream: str, start: datetime | None = None, end: datetime | None = None) -> Bars:
        """Read the bars of a stream in a range of time."""
        bars = self._file(stream).read().until(end)
        if start is None:
            return bars
        return bars.rows(int(np.searchsorted(bars.ts, to_ns(start))), len(bars))

    def follow(self, stream: str, after: int | None, limit: int) -> NewBars:
        """Read bars that closed after a time. The file is read again when it has changed."""
        bars = self._file(stream).read()
        row = 0 if after is None else int(np.searchsorted(bars.closes, after, side="right"))
        return NewBars(bars.rows(row, min(row + limit, len(bars))), earlier=row)

    def _file(self, stream: str) -> FileSource:
        preset = self._preset
        path = preset.path.replace("{stream}", stream)
        kind = CsvSource if path.lower().endswith(".csv") or preset.source == "csv" else ParquetSource
        several = "{stream}" not in preset.path and len(preset.streams) > 1
        return kind(path, interval=preset.interval, symbol=stream if several else None)


def _state(source: FileSource) -> tuple[str, int, int]:
    """Path, modification time and size of a file; zeros where it does not exist."""
    file = resolved(source.path)
    stat = file.stat() if file.exists() else None
    return (str(file), stat.st_mtime_ns, stat.st_size) if stat else (str(file), 0, 0)


@lru_cache(maxsize=64)
def _fingerprint(preset_json: str, states: tuple[tuple[str, int, int], ...], until: datetime | None) -> str:
    preset = Preset.model_validate_json(preset_json)
    data = FileMarketData(preset)
    streams = {stream: data.read(stream, end=until) for stream in preset.streams}
    for stream, bars in streams.items():
        require_no_gap(preset, stream, bars)
    return fingerprint(streams)
