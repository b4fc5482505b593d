"""What a compute function sees: windows over its inputs, never the world around them.

Bar by bar a window ends at this bar and holds the node's last `period` bars of each input; in batch it holds the whole history. The
function can't tell which. A bar carries the UTC time at which it opened; times in frames are those.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from qmtl_sdk.contracts.durations import seconds
from qmtl_sdk.contracts.errors import QmtlError


@dataclass(frozen=True)
class Window:
    """Bars `lo` to `hi` of one node's output. `ts` are opening times (int64 ns, UTC); columns are slices, never copies."""

    node_id: str
    label: str
    interval: int
    ts: np.ndarray
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ts)

    def __getitem__(self, key: "str | int") -> "np.ndarray | Window":
        """A column by name. The window itself for its own interval, so that `view[node][60]` reads as the spec writes it."""
        if isinstance(key, str) and key in self.columns:
            return self.columns[key]
        if not isinstance(key, str) and int(key) == self.interval:
            return self
        raise _no_column(self.label, [str(key)], list(self.columns))

    @property
    def values(self) -> np.ndarray:
        """The only column, or `close` where there are several."""
        if len(self.columns) == 1:
            return next(iter(self.columns.values()))
        if "close" in self.columns:
            return self.columns["close"]
        raise _no_column(self.label, ["close"], list(self.columns))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.values, dtype=dtype)

    @property
    def index(self) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self.ts.view("M8[ns]")).tz_localize("UTC")

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.columns, index=self.index, copy=False)


@dataclass(frozen=True)
class FrameView:
    """A frame of one input, indexed by opening time (UTC)."""

    label: str
    frame: pd.DataFrame

    def validate_columns(self, columns: Sequence[str]) -> "FrameView":
        """Itself, if it has all of them. Raises QmtlError (E_COLUMN_MISSING)."""
        missing = [name for name in columns if name not in self.frame.columns]
        if missing:
            raise _no_column(self.label, missing, list(map(str, self.frame.columns)))
        return self


class CacheView:
    """Read-only windows over a node's inputs, by node or NodeID. Iterating gives the inputs' NodeIDs, in the order of NodeIDs."""

    __slots__ = ("_windows",)

    def __init__(self, windows: dict[str, Window]) -> None:
        self._windows = windows

    def __getitem__(self, node: Any) -> Window:
        node_id = node if isinstance(node, str) else getattr(node, "node_id", "")
        window = self._windows.get(node_id)
        if window is None:
            known = ", ".join(sorted(w.label for w in self._windows.values())) or "none"
            raise QmtlError(
                "E_NODE_INPUT",
                f"{getattr(node, 'label', node)} is not an input of this node",
                f"pass it in input=; inputs are: {known}",
            )
        return window

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._windows))

    def __len__(self) -> int:
        return len(self._windows)

    def as_frame(
        self,
        node: Any,
        interval: "int | str | timedelta | None" = None,
        *,
        columns: Sequence[str] | None = None,
        window: int | None = None,
    ) -> FrameView:
        """An input's bars as a frame. Raises QmtlError: E_INTERVAL where `interval` is not the input's, E_COLUMN_MISSING."""
        seen = self[node]
        if interval is not None and seconds(interval) != seen.interval:
            raise QmtlError(
                "E_INTERVAL",
                f"{seen.label} has an interval of {seen.interval} s, not {seconds(interval)} s",
                "ask for the input's own interval",
            )
        frame = seen.frame if window is None else seen.frame.iloc[-window:]
        view = FrameView(seen.label, frame)
        return (
            view
            if columns is None
            else FrameView(seen.label, view.validate_columns(columns).frame[list(columns)])
        )

    def align_frames(
        self, inputs: "Sequence[tuple[Any, int | str | timedelta]]", window: int | None = None
    ) -> list[FrameView]:
        """Frames of one index: the finest input's bars, each joined to what had closed by its close (a backward as-of join on closing times)."""
        seen = [self.as_frame(node, interval) for node, interval in inputs]
        lengths = [self[node].interval for node, _ in inputs]
        if not seen:
            return []
        finest = min(lengths)
        index = None
        for view, length in zip(seen, lengths, strict=True):
            if length == finest:
                index = view.frame.index if index is None else index.union(view.frame.index)
        assert index is not None  # at least one input has the least interval
        index = index if window is None else index[-window:]
        closes = index + pd.Timedelta(seconds=finest)
        aligned = []
        for view, length in zip(seen, lengths, strict=True):
            at = (view.frame.index + pd.Timedelta(seconds=length)).searchsorted(closes, side="right") - 1
            rows = view.frame.take(np.maximum(at, 0)) if len(view.frame) else view.frame.reindex(index)
            rows = rows.set_axis(index)
            aligned.append(
                FrameView(
                    view.label,
                    rows.where(pd.Series(at >= 0, index=index), other=np.nan) if (at < 0).any() else rows,
                )
            )
        return aligned


def _no_column(label: str, wanted: list[str], there: list[str]) -> QmtlError:
    return QmtlError(
        "E_COLUMN_MISSING",
        f"{label} has no column {', '.join(wanted)}",
        f"it has: {', '.join(there) or 'none'}",
        columns=there,
    )
