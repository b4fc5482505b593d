"""History played as if live: a source that hands out the bars of a file as they fall due on a world's replay clock."""

from collections.abc import Iterator
from datetime import datetime

import numpy as np

from qmtl_sdk.contracts.worlds import Replay
from qmtl_sdk.data.bars import Bars, to_ns


class ReplaySource:
    """`history()` is what had closed before the replay began; `due(after, now)` the bars that closed in (after, now], oldest first."""

    def __init__(self, bars: Bars, replay: Replay) -> None:
        self._bars, self._replay = bars, replay

    def history(self) -> Bars:
        return self._bars.until(self._replay.start)

    def due(self, after: datetime, now: datetime) -> Iterator[tuple[int, dict[str, float]]]:
        """(opening time in ns, values by column) of each bar that falls due. Never one that the clock has not reached."""
        lo = int(np.searchsorted(self._bars.closes, to_ns(max(after, self._replay.start)), side="right"))
        hi = int(np.searchsorted(self._bars.closes, to_ns(now), side="right"))
        for row in range(lo, hi):
            yield (
                int(self._bars.ts[row]),
                {name: float(values[row]) for name, values in self._bars.columns.items()},
            )

    def next_due(self, now: datetime) -> float | None:
        """Wall-clock seconds until the next bar closes; None when the history is at its end or the clock stands still."""
        row = int(np.searchsorted(self._bars.closes, to_ns(now), side="right"))
        if row == len(self._bars) or self._replay.speed == 0:
            return None
        return float((int(self._bars.closes[row]) - to_ns(now)) / 1e9 / self._replay.speed)
