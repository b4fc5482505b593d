"""Figures of a year: noted all the time, compared between two tenths, printed as a table and a plot."""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from tests.chaos.soak.year import DAYS, Year

ALLOWED = 1.2
"""What a figure of the last tenth may be, as a multiple of the first."""

FILLING = 30.0 + 7.0 + 7.0
"""Days until as many rows go as come; the first tenth follows.

Rows are kept for thirty days, a few of them wait a week for others, and retention runs once a week.
"""

TENTH = DAYS / 10
"""Days of a tenth of the year."""

FIXED_WORK = "fixed work"
"""How long this process takes for the same work, all through the year."""

NOT_JUDGED = ("bus, MB", "load of the machine", f"{FIXED_WORK} p95, ms")
"""Figures without a limit.

The bus retains a number of events, however old they are: in a thinned year it is never full. The load is also
that of whoever else uses the machine. With the time of fixed work, it explains latencies.
"""

LATENCIES = ("ack", "judgment", "order", FIXED_WORK)

_COLUMNS = 64
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Compared:
    """A figure in two tenths of the year: the 95th percentile of what was timed, else the median."""

    name: str
    first: float
    last: float

    @property
    def ratio(self) -> float:
        if not self.first:
            return math.inf if self.last else 1.0
        return self.last / self.first

    @property
    def is_over(self) -> bool:
        return self.ratio > ALLOWED and self.name not in NOT_JUDGED

    def line(self) -> str:
        """The figure as a row of the table."""
        verdict = "OVER" if self.is_over else "ok"
        if self.name in NOT_JUDGED:
            verdict = "-"
        return f"{self.name:<24} {self.first:>11.1f} {self.last:>11.1f} {self.ratio:>8.2f}  {verdict}"


class Figures:
    """Values of each figure, with the day of each."""

    def __init__(self, year: Year) -> None:
        self._year = year
        self._noted: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def note(self, name: str, value: float) -> None:
        self._noted[name].append((self._year.day, value))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how many milliseconds something took; nothing where it failed."""
        began = time.perf_counter()
        yield
        self.note(name, 1000 * (time.perf_counter() - began))

    def compared(self) -> list[Compared]:
        """Compare the first tenth after the filling with the last tenth."""
        return [
            Compared(
                _title(name),
                self._figure(name, FILLING, FILLING + TENTH),
                self._figure(name, DAYS - TENTH, math.inf),
            )
            for name in self._noted
        ]

    def table(self) -> str:
        """The table: a row for each figure, and whether it is over what is allowed."""
        head = f"{'figure':<24} {'first tenth':>11} {'last tenth':>11} {'ratio':>8}  ≤ {ALLOWED}"
        return "\n".join([head, *(found.line() for found in self.compared())])

    def plot(self) -> str:
        """The plot: for each figure a line over the year, from zero to its largest value."""
        step = DAYS / _COLUMNS
        lines = []
        for name in self._noted:
            found = [self._figure(name, step * column, step * (column + 1)) for column in range(_COLUMNS)]
            top = max(found) or 1.0
            bars = "".join(
                _BARS[min(len(_BARS) - 1, int(len(_BARS) * value / top))] if value else " " for value in found
            )
            lines.append(f"{_title(name):<24} {bars} ≤ {top:.1f}")
        days = f"{'day':<24} {0:<{_COLUMNS // 2}}{DAYS // 2:<{_COLUMNS // 2 - 3}}{DAYS}"
        return "\n".join([*lines, days])

    def json_list(self) -> list[dict[str, object]]:
        return [
            {**asdict(found), "ratio": round(found.ratio, 3) if math.isfinite(found.ratio) else None}
            for found in self.compared()
        ]

    def _figure(self, name: str, begin: float, end: float) -> float:
        """The figure of the days from `begin` up to `end`; zero where nothing was noted."""
        values = sorted(value for day, value in self._noted[name] if begin <= day < end)
        if not values:
            return 0.0
        return values[int(0.95 * len(values))] if name in LATENCIES else statistics.median(values)


def _title(name: str) -> str:
    return f"{name} p95, ms" if name in LATENCIES else name
