"""The equity of strategies and worlds day by day, from the ledger.

A day is one in UTC, and its figures are those at its end; those of the newest day are those of now. They are
what the ledger's positions of then add up to, each at the mark of its newest entry until then: a symbol that
nobody traded on a day keeps its mark, dividends, fees and splits count when they were recorded, and so does
the correction of an older fill. They are read from the sums that booking keeps for each day
(`activities/ledger/exposures.py`), so that neither entries nor positions are read, and removed entries count.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Context, Decimal
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, CursorResult, func, select

from activities.ledger.exposures import ExposureKey
from activities.storage.tables import ExposureDayRow, ExposureRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.amounts import EXACT, ZERO
from qmtl_sdk.contracts.equity_report import MOST_REPORT_DAYS

_exposure = table_of(ExposureRow)
_day = table_of(ExposureDayRow)
_OWNER = ("world_id", "strategy_id", "account")
_COLUMNS = tuple(
    _day.c[name] for name in ("strategy_id", "account", "day", "gross", "net", "profit", "fees", "traded")
)
_RETURNS = Context(prec=28)

_CHUNK = 2000
"""Rows that are read at a time."""


class EquityDay(NamedTuple):
    """What an owner had earned and held at the end of a day, in money of its account.

    `profit` is realised + unrealised + income - fees since the beginning, `earned` what the day added to it.
    `gross` and `net` are the notional of the positions without and with signs. `turnover` is the notional of
    the day's fills, `costs` its fees; each is less by what was taken back on that day, so it may be negative.
    """

    day: date
    profit: Decimal
    earned: Decimal
    gross: Decimal
    net: Decimal
    turnover: Decimal
    costs: Decimal


class Sums(NamedTuple):
    """The sums of an owner since the beginning, in money of its account."""

    gross: Decimal = ZERO
    net: Decimal = ZERO
    profit: Decimal = ZERO
    fees: Decimal = ZERO
    traded: Decimal = ZERO


class OwnerDays(NamedTuple):
    """What the days from `first` to `last` made of an owner's sums, of which `opening` are those before.

    `rows` has the days in which an entry was booked, oldest first, each once: its date (ISO 8601) as `day`,
    and the texts of its sums by the names in `Sums`. The others are as the one before. (Any: such rows.)
    """

    owner: ExposureKey
    first: date
    last: date
    opening: Sums
    rows: Sequence[Any]

    @property
    def number(self) -> int:
        """How many days it has, 1 or more."""
        return (self.last - self.first).days + 1

    @property
    def newest(self) -> Sums:
        """The sums at the end of the last day."""
        return _sums(self.rows[-1]) if self.rows else self.opening

    def series(self) -> tuple[EquityDay, ...]:
        """Return each day, oldest first."""
        changed = {min(date.fromisoformat(row.day), self.last): _sums(row) for row in self.rows}
        return tuple(_series(self.opening, changed, _dates(self.first, self.last)))

    def max_drawdown(self, capital: Decimal) -> Decimal:
        """Return the largest fall of the equity from its highest point so far, as a share of that; 0 or more.

        Equity is `capital` and the profit.
        """
        worst, peak = ZERO, self.opening.profit
        lowest = peak
        for row in self.rows:
            profit = Decimal(row.profit)
            if profit > peak:
                worst = max(worst, _fall(capital, peak, lowest))
                peak = lowest = profit
            elif profit < lowest:
                lowest = profit
        return max(worst, _fall(capital, peak, lowest))


def daily_equity(
    connection: Connection, world_id: str, now: datetime, days: int, strategy_id: str | None = None
) -> dict[ExposureKey, tuple[EquityDay, ...]]:
    """Read the series of a world's last `days` days, oldest first, by owner; see `days_by_owner`.

    All days of all owners are in memory: it is for the whole world, or for one strategy.
    """
    found = {
        each.owner: each.series() for each in days_by_owner(connection, world_id, now, days, strategy_id)
    }
    return dict(sorted(found.items()))


def days_by_owner(
    connection: Connection, world_id: str, now: datetime, days: int, strategy_id: str | None = None
) -> Iterator[OwnerDays]:
    """Read a world's last `days` days (1 to `MOST_REPORT_DAYS`), one owner at a time, in no order of owners.

    Owners are strategies and the whole world (strategy `WHOLE_WORLD`), each at an account; `strategy_id`
    names one of these, or the whole world. An owner's days begin with the first one in which an entry was
    booked, or with the first one asked for. Whatever never had an entry is left out. Two statements. Rows are
    read a chunk at a time: a thousand owners have 400,000, which would be half a gigabyte.
    """
    if not 1 <= days <= MOST_REPORT_DAYS:
        raise ValueError(f"a series has 1 to {MOST_REPORT_DAYS} days, not {days}")
    today = now.date()
    start = today - timedelta(days=days - 1)
    before = {_owner(row): _sums(row) for row in _before(connection, world_id, strategy_id, start)}
    with _in_days(connection, world_id, strategy_id, start) as found:
        for key, group in groupby(found, itemgetter(0, 1)):
            rows, owner = list(group), ExposureKey(*key)
            # A clock that was set back may have left rows of days to come: the newest is as of now.
            while len(rows) > 1 and rows[-2].day >= today.isoformat():
                del rows[-2]
            opening = before.pop(owner, None)
            first = min(date.fromisoformat(rows[0].day), today) if opening is None else start
            yield OwnerDays(owner, first, today, opening or Sums(), rows)
    for owner, opening in before.items():
        yield OwnerDays(owner, start, today, opening, ())


def _fall(capital: Decimal, peak: Decimal, lowest: Decimal) -> Decimal:
    """Return the fall between two profits as a share of the equity at the higher one; 0 without equity."""
    equity = EXACT.add(capital, peak)
    return _RETURNS.divide(EXACT.subtract(peak, lowest), equity) if equity > 0 else ZERO


def _dates(first: date, last: date) -> Iterator[date]:
    return (first + timedelta(days=number) for number in range((last - first).days + 1))


def _series(before: Sums, changed: dict[date, Sums], dates: Iterable[date]) -> Iterator[EquityDay]:
    for day in dates:
        now = changed.get(day, before)
        yield EquityDay(
            day=day,
            profit=now.profit,
            earned=EXACT.subtract(now.profit, before.profit),
            gross=now.gross,
            net=now.net,
            turnover=EXACT.subtract(now.traded, before.traded),
            costs=EXACT.subtract(now.fees, before.fees),
        )
        before = now


def _in_days(
    connection: Connection, world_id: str, strategy_id: str | None, start: date
) -> CursorResult[Any]:  # Any: the columns of a row
    """Read the sums of the days since `start`, those of an owner together and oldest first."""
    its = [_day.c[name] == _exposure.c[name] for name in _OWNER]
    query = select(*_COLUMNS).where(*its, _exposure.c.world_id == world_id, _day.c.day >= start.isoformat())
    if strategy_id is not None:
        query = query.where(_exposure.c.strategy_id == strategy_id)
    # From owner to owner, so that days before `start` are not read.
    query = query.order_by(_exposure.c.strategy_id, _exposure.c.account, _day.c.day)
    return connection.execute(query, execution_options={"yield_per": _CHUNK})


def _before(
    connection: Connection, world_id: str, strategy_id: str | None, start: date
) -> Iterable[Any]:  # Any: the columns of a row
    """Read the newest sums of each owner before `start`."""
    its = [_day.c[name] == _exposure.c[name] for name in _OWNER]
    newest = select(func.max(_day.c.day)).where(*its, _day.c.day < start.isoformat()).correlate(_exposure)
    owners = select(*(_exposure.c[name] for name in _OWNER), newest.scalar_subquery().label("day"))
    owners = owners.where(_exposure.c.world_id == world_id)
    if strategy_id is not None:
        owners = owners.where(_exposure.c.strategy_id == strategy_id)
    # Materialized, or SQLite would look each up for every day of its owner.
    found = owners.cte("newest").prefix_with("MATERIALIZED")
    same = [_day.c[name] == found.c[name] for name in (*_OWNER, "day")]
    return connection.execute(select(*_COLUMNS).where(*same)).all()


def _owner(row: Any) -> ExposureKey:
    return ExposureKey(*row[:2])


def _sums(row: Any) -> Sums:
    return Sums(**{name: Decimal(getattr(row, name)) for name in Sums._fields})
