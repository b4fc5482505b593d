"""The view that a compute function reads: windows over the bars of its inputs.

Bar by bar, a window ends at the bar that is computed and holds the last `period` bars of each input. In
batch, it holds the whole history. So a function returns a value for each row, each from its own row and
earlier ones, or one row for the window. Times in frames are the UTC times at which bars open.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from qmtl_sdk.contracts.durations import seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a view of an array that can't be written to, nor can slices of it."""
    view = array.view()
    view.setflags(write=False)
    return view


@dataclass(frozen=True)
class Window:
    """Consecutive bars of one node's output.

    `ts`: opening times (int64 ns, UTC). Columns are slices, not copies, of arrays that are `read_only`: an
    author's function that writes to one fails, and changes nothing that others read.
    """

    node_id: str
    label: str
    interval: int
    ts: np.ndarray
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ts)

    def __getitem__(self, key: "str | int") -> "np.ndarray | Window":
        """Return a column by name, or the window itself for its own interval in seconds (`view[node][60]`).

        Raises QmtlError: E_COLUMN_MISSING.
        """
        if isinstance(key, str) and key in self.columns:
            return self.columns[key]
        if not isinstance(key, str) and int(key) == self.interval:
            return self
        raise _no_column(self.label, [str(key)], list(self.columns))

    @property
    def values(self) -> np.ndarray:
        """The only column, or `close` where there are several. Raises QmtlError: E_COLUMN_MISSING."""
        if len(self.columns) == 1:
            return next(iter(self.columns.values()))
        if "close" in self.columns:
            return self.columns["close"]
        raise _no_column(self.label, ["close"], list(self.columns))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.values, dtype=dtype)

    @property
    def index(self) -> pd.DatetimeIndex:
        """The opening times of the bars, UTC."""
        return pd.DatetimeIndex(self.ts.view("M8[ns]")).tz_localize("UTC")

    @property
    def frame(self) -> pd.DataFrame:
        """The columns as a frame, one row a bar, indexed by opening time."""
        return pd.DataFrame(self.columns, index=self.index, copy=False)


@dataclass(frozen=True)
class FrameView:
    """A frame of one input: one row a bar, indexed by opening time (UTC)."""

    label: str
    frame: pd.DataFrame

    def validate_columns(self, columns: Sequence[str]) -> "FrameView":
        """Return the frame view itself.

        Raises QmtlError: E_COLUMN_MISSING where it lacks one of `columns`.
        """
        missing = [name for name in columns if name not in self.frame.columns]
        if missing:
            raise _no_column(self.label, missing, list(map(str, self.frame.columns)))
        return self


class CacheView:
    """Read-only windows over a node's inputs, by node or NodeID.

    Iteration yields the inputs' NodeIDs, sorted.

    A compute function returns a value for each row of the view, each depending only on its row and those
    before it, or one row for the window. A result whose rows depend on later rows is refused (E_LOOKAHEAD).
    """

    __slots__ = ("_windows",)

    def __init__(self, windows: dict[str, Window]) -> None:
        self._windows = windows

    def __getitem__(self, node: Any) -> Window:
        """Return an input's window.

        Raises QmtlError: E_NODE_INPUT. (Any: a Node or a NodeID; Node imports this.)
        """
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

    def __repr__(self) -> str:
        inputs = ", ".join(f"{window.label}: {len(window)} bars" for window in self._windows.values())
        return f"CacheView({inputs})"

    def as_frame(
        self,
        node: Any,
        interval: "int | str | timedelta | None" = None,
        *,
        columns: Sequence[str] | None = None,
        window: int | None = None,
    ) -> FrameView:
        """Return an input's bars as a frame; `window`: only the last so many bars.

        Raises QmtlError: E_INTERVAL where `interval` is not the input's, E_COLUMN_MISSING.
        """
        seen = self._window(node, interval)
        frame = seen.frame if window is None else seen.frame.iloc[-window:]
        view = FrameView(seen.label, frame)
        if columns is None:
            return view
        return FrameView(seen.label, view.validate_columns(columns).frame[list(columns)])

    def _window(self, node: Any, interval: "int | str | timedelta | None") -> Window:
        """Return an input's window, after a check of the interval. (Any: as in `__getitem__`.)"""
        window = self[node]
        if interval is not None and seconds(interval) != window.interval:
            raise QmtlError(
                "E_INTERVAL",
                f"{window.label} has an interval of {window.interval} s, not {seconds(interval)} s",
                "pass the input's own interval",
            )
        return window

    def align_frames(
        self, inputs: "Sequence[tuple[Any, int | str | timedelta]]", window: int | None = None
    ) -> list[FrameView]:
        """Return frames that share the index of the finest input, in the order of `inputs`.

        Each bar is joined to the newest bar of the other input that had closed by its own close (a backward
        as-of join on closing times). `window`: only the last so many bars. Raises QmtlError:
        E_NODE_INPUT, E_INTERVAL.
        """
        seen = [self._window(node, interval) for node, interval in inputs]
        if not seen:
            return []
        finest = min(item.interval for item in seen)
        times = reduce(np.union1d, [item.ts for item in seen if item.interval == finest])
        times = times if window is None else times[-window:]
        index = pd.DatetimeIndex(times.view("M8[ns]")).tz_localize("UTC")
        closes = times + finest * NS
        return [_joined(item, closes, index) for item in seen]


def _joined(window: Window, closes: np.ndarray, index: pd.DatetimeIndex) -> FrameView:
    """Return a row for each time in `closes` (ns): the newest bar closed by then, NaN without one."""
    at = np.searchsorted(window.ts + window.interval * NS, closes, side="right") - 1
    missing = at < 0
    columns = {}
    for name, values in window.columns.items():
        rows = values[np.maximum(at, 0)] if len(values) else np.full(len(at), np.nan)
        columns[name] = np.where(missing, np.nan, rows) if missing.any() else rows
    return FrameView(window.label, pd.DataFrame(columns, index=index))


def _no_column(label: str, wanted: list[str], known: list[str]) -> QmtlError:
    return QmtlError(
        "E_COLUMN_MISSING",
        f"{label} has no column {', '.join(wanted)}",
        f"it has: {', '.join(known) or 'none'}",
        columns=known,
    )
