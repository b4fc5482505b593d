"""Market data sources: where the streams of a world's presets come from.

A preset's `source` names one: `csv`, `parquet` and `replay` are built in, and installed packages add more with entry
points of the group `qmtl.sources`.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Protocol

import numpy as np

from qmtl_sdk.contracts.registry import Registry
from qmtl_sdk.contracts.worlds import Preset
from qmtl_sdk.data.bars import Bars, fingerprint, to_ns
from qmtl_sdk.data.source import CsvSource, FileSource, ParquetSource, resolved, streams_in

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
    """Bars that closed after a position. `earlier` counts those up to it; None where the source does not know.

    A caller that sees `earlier` grow learns that bars appeared late.
    """

    bars: Bars
    earlier: int | None = None


class MarketDataSource(Protocol):
    """The streams of one preset. Made from the preset by calling the registered class.

    Every method raises QmtlError: E_DATA_NOT_FOUND or E_DATA_SCHEMA where the data cannot be read. Bars are sorted by
    time, without duplicates, and finite or missing (`qmtl_sdk.data.bars.checked`).
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

    def follow(self, stream: str, after: int | None) -> NewBars:
        """Read the bars that closed after `after` (ns since 1970 UTC); all of them for None."""


def market_data(preset: Preset) -> MarketDataSource:
    """Open the source of a preset.

    Raises QmtlError: E_EXTENSION_UNKNOWN, with the known names, where there is no such source; E_EXTENSION.
    """
    source: MarketDataSource = SOURCES.load(preset.source)(preset)
    return source


class FileMarketData:
    """Streams in CSV or Parquet files. The preset's `path` names one file, or one for each stream with `{stream}`."""

    def __init__(self, preset: Preset) -> None:
        self._preset = preset

    def streams(self) -> tuple[str, ...]:
        """List the streams: by file name where the path holds `{stream}`, else by the column `symbol`."""
        preset = self._preset
        if "{stream}" in preset.path:
            pattern = resolved(preset.path)
            before, _, after = pattern.name.partition("{stream}")
            files = sorted(pattern.parent.glob(f"{before}*{after}"))
            return tuple(file.name.removeprefix(before).removesuffix(after) for file in files)
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

    def follow(self, stream: str, after: int | None) -> NewBars:
        """Read the bars that closed after a time. The file is read again when it has changed."""
        bars = self._file(stream).read()
        row = 0 if after is None else int(np.searchsorted(bars.closes, after, side="right"))
        return NewBars(bars.rows(row, len(bars)), earlier=row)

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
    return fingerprint({stream: data.read(stream, end=until) for stream in preset.streams})
