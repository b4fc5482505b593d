"""The last rows of a node's output in a live run, in memory that does not grow."""

from collections.abc import Mapping

import numpy as np
from blake3 import blake3

from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.data.bars import NS
from qmtl_sdk.nodes.view import Window, read_only

Row = tuple[int, dict[str, float]]
"""Opening time in ns, and the values by column."""

NEVER = -(2**63)
"""A time before every bar, in ns."""

_LEAST_ROWS = 256
"""Rows of the smallest buffer: full buffers are moved, which should be rare."""


class Series:
    """The last `rows` rows of a node's output.

    Buffers are filled from the left; a full buffer moves its last rows to the left.
    `total` counts all rows that there have been; `first` is the number of the first one after the warm-up.
    """

    def __init__(self, node_id: str, label: str, interval: int, rows: int) -> None:
        self.node_id = node_id
        self.label = label
        self.interval = interval
        self.total = 0
        self.first: int | None = None
        self._retained = max(1, rows)
        self._size = max(_LEAST_ROWS, 4 * self._retained)
        self._ts = np.empty(self._size, dtype="int64")
        self._columns: dict[str, np.ndarray] = {}
        self._read_only_ts = read_only(self._ts)
        self._read_only_columns: dict[str, np.ndarray] = {}
        self._rows = 0

    @property
    def last_close(self) -> int:
        """The time at which the newest row closed, in ns; `NEVER` for a series without rows."""
        return int(self._ts[self._rows - 1]) + self.interval * NS if self._rows else NEVER

    @property
    def resident_bytes(self) -> int:
        """The size of its buffers."""
        return self._ts.nbytes * (1 + len(self._columns))  # all columns have 8 bytes a row, as times have

    def seed(self, output: NodeOutput) -> None:
        """Continue from a batch's output."""
        count = min(len(output.bars), self._size // 2)
        self._ts[:count] = output.bars.ts[len(output.bars) - count :]
        for name, values in output.bars.columns.items():
            self._column(name)[:count] = values[len(values) - count :]
        self._rows = count
        self.total = len(output.bars)
        self.first = output.first if len(output.bars) else None

    def append(self, ts: int, values: Mapping[str, float]) -> None:
        """Add a row. A column that it lacks is missing in it."""
        if self._rows == self._size:
            start = self._size - self._retained
            self._ts[: self._retained] = self._ts[start:]
            for column in self._columns.values():
                column[: self._retained] = column[start:]
            self._rows = self._retained
        row = self._rows
        self._ts[row] = ts
        for name in values:
            self._column(name)
        for name, column in self._columns.items():
            column[row] = values.get(name, np.nan)
        self._rows += 1
        self.total += 1

    def window(self, period: int) -> Window:
        """Return the last `period` rows, or fewer if there are fewer."""
        lo = max(0, self._rows - period)
        hi = self._rows
        return Window(
            self.node_id,
            self.label,
            self.interval,
            self._read_only_ts[lo:hi],
            {name: column[lo:hi] for name, column in self._read_only_columns.items()},
        )

    def _column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = np.full(self._size, np.nan)
            self._read_only_columns[name] = read_only(self._columns[name])
        return self._columns[name]


def window_hash(windows: Mapping[str, Window]) -> str:
    """Return 32 hex digits that identify a node's input: times and values of each window."""
    digest = blake3()
    for node_id in sorted(windows):
        window = windows[node_id]
        digest.update(f"{node_id}:{len(window)}".encode())
        digest.update(np.ascontiguousarray(window.ts).tobytes())
        for name in sorted(window.columns):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(window.columns[name]).tobytes())
    return digest.hexdigest(16)
