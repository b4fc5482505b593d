"""What strategies and worlds hold and have earned at each account, added up as entries are booked.

The sums of now are in one row for each owner, and those of the end of each day in which an entry was booked
in one more, so that a series of years is read without an entry.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select, text

from activities.storage.keys import has_key
from activities.storage.lists import among_keys
from activities.storage.tables import ExposureDayRow, ExposureRow
from activities.storage.transactions import Transaction, table_of
from qmtl_sdk.contracts.amounts import EXACT, ZERO, plain
from qmtl_sdk.contracts.ledger import EntryKind, Position, PositionKey

_exposure = table_of(ExposureRow)
_day = table_of(ExposureDayRow)
_OWNER = (_day.c.strategy_id, _day.c.account)

WHOLE_WORLD = ""
"""The strategy_id of a world's own row."""

# The condition of the index `exposure_account`, in its exact words.
_OF_WORLDS = text("exposure.strategy_id = ''")


class AccountTotals(NamedTuple):
    """The notional of all positions at their marks, what was earned with them, and the highest of that.

    `net` is the notional with signs. `fees` and `traded` are all fees, and the notional of all fills. `day`
    is the day in UTC of the newest entry; it never falls.
    """

    gross: Decimal = ZERO
    profit: Decimal = ZERO
    peak: Decimal = ZERO
    net: Decimal = ZERO
    fees: Decimal = ZERO
    traded: Decimal = ZERO
    day: str = ""

    def moved(self, change: "Change", day: str) -> "AccountTotals":
        """Return the totals after one of its positions has changed."""
        profit = EXACT.add(self.profit, change.profit)
        return AccountTotals(
            gross=EXACT.add(self.gross, change.gross),
            profit=profit,
            peak=max(self.peak, profit),
            net=EXACT.add(self.net, change.net),
            fees=EXACT.add(self.fees, change.fees),
            traded=EXACT.add(self.traded, change.traded),
            day=max(self.day, day),
        )


_AMOUNTS = tuple(name for name in AccountTotals._fields if name != "day")
_OF_A_DAY = ("gross", "net", "profit", "fees", "traded")


class Change(NamedTuple):
    """What an entry adds to the exposures in which its position counts."""

    gross: Decimal
    profit: Decimal
    net: Decimal
    fees: Decimal
    traded: Decimal


def change_of(kind: EntryKind, before: Position, after: Position) -> Change:
    """Return the change of a position by an entry. A fill that is taken back counts as not traded."""
    fees = EXACT.subtract(after.fees, before.fees)
    paid = EXACT.add(EXACT.subtract(after.cash, before.cash), fees)
    was, now = net_of(before), net_of(after)
    return Change(
        gross=EXACT.subtract(now.copy_abs(), was.copy_abs()),  # a mark is not negative
        profit=EXACT.subtract(EXACT.add(after.cash, now), EXACT.add(before.cash, was)),
        net=EXACT.subtract(now, was),
        fees=fees,
        traded=EXACT.multiply(_TRADED.get(kind, ZERO), paid.copy_abs()),
    )


_TRADED = {EntryKind.FILL: Decimal(1), EntryKind.REVERSAL: Decimal(-1)}


def gross_of(position: Position) -> Decimal:
    """Return the notional of a position at its mark, positive."""
    return EXACT.multiply(position.quantity.copy_abs(), position.mark)


def net_of(position: Position) -> Decimal:
    """Return what a position is worth at its mark; short is negative."""
    return EXACT.multiply(position.quantity, position.mark)


def profit_of(position: Position) -> Decimal:
    """Return what was earned with a position: cash, and what is held at its mark."""
    return EXACT.add(position.cash, net_of(position))


class ExposureKey(NamedTuple):
    """Whose exposure it is in a world: a strategy's, or `WHOLE_WORLD`, at an account."""

    strategy_id: str
    account: str


DayKey = tuple[ExposureKey, str]
"""An owner and a day (ISO 8601, UTC)."""


class Exposures:
    """The exposures of a world as entries change them, and what they were at the end of each day."""

    def __init__(self, found: dict[ExposureKey, AccountTotals] | None = None) -> None:
        self.found = found or {}
        self.days: dict[DayKey, AccountTotals] = {}

    def move(self, key: PositionKey, kind: EntryKind, before: Position, then: tuple[str, Position]) -> None:
        """Take the change of a position by an entry. `then`: its time (ISO 8601, UTC), the position after."""
        at, after = then
        change = change_of(kind, before, after)
        for mine in owners(key):
            moved = self.found.get(mine, AccountTotals()).moved(change, at[:10])
            self.found[mine] = self.days[mine, moved.day] = moved

    def take_ended_days(self) -> dict[DayKey, AccountTotals]:
        """Take out the days that no entry can change any more, since their owners have later ones."""
        ended = {key: found for key, found in self.days.items() if key[1] != self.found[key[0]].day}
        for key in ended:
            del self.days[key]
        return ended

    def store(self, tx: Transaction, world_id: str) -> None:
        """Write them. The caller holds the world's fence."""
        rows = [
            {"world_id": world_id, **key._asdict(), "day": found.day, **_texts(found, _AMOUNTS)}
            for key, found in sorted(self.found.items())
        ]
        days = [
            {"world_id": world_id, **key._asdict(), "day": day, **_texts(found, _OF_A_DAY)}
            for (key, day), found in sorted(self.days.items())
        ]
        if rows:
            tx.upsert_values(_exposure, rows)
        if days:
            tx.upsert_values(_day, days)


def _texts(found: AccountTotals, names: Iterable[str]) -> dict[str, str]:
    return {name: str(plain(getattr(found, name))) for name in names}


def owners(key: PositionKey) -> tuple[ExposureKey, ExposureKey]:
    """Return whose exposures a position counts in."""
    return ExposureKey(key.strategy_id, key.account), ExposureKey(WHOLE_WORLD, key.account)


def totals_of(
    connection: Connection, world_id: str, keys: Iterable[ExposureKey]
) -> dict[ExposureKey, AccountTotals]:
    """Read totals of a world; those that never were are left out."""
    wanted = sorted(set(keys))
    if not wanted:
        return {}
    these = has_key(_exposure, ("strategy_id", "account"), wanted)
    return _read(connection, [_exposure.c.world_id == world_id, these])


def all_totals(connection: Connection, world_id: str) -> dict[ExposureKey, AccountTotals]:
    """Read all totals of a world."""
    return _read(connection, [_exposure.c.world_id == world_id])


def totals_of_days(
    connection: Connection, world_id: str, keys: Iterable[DayKey]
) -> dict[DayKey, AccountTotals]:
    """Read totals at the ends of these days, each without its peak, which a day has not."""
    wanted = [(world_id, *owner, day) for owner, day in keys]
    query = select(_day).where(among_keys((_day.c.world_id, *_OWNER, _day.c.day), wanted))
    return {
        (ExposureKey(row.strategy_id, row.account), row.day): AccountTotals(
            day=row.day, **{name: Decimal(getattr(row, name)) for name in _OF_A_DAY}
        )
        for row in connection.execute(query)
    }


def number_of_days(connection: Connection, world_id: str) -> dict[ExposureKey, int]:
    """Count the days of each owner of a world that have a row."""
    query = select(*_OWNER, func.count()).where(_day.c.world_id == world_id).group_by(*_OWNER)
    return {ExposureKey(*row[:2]): row[2] for row in connection.execute(query)}


def totals_at_account(connection: Connection, account: str) -> dict[str, AccountTotals]:
    """Read the totals of each world at an account."""
    mine = (_OF_WORLDS, _exposure.c.account == account)
    rows = connection.execute(select(_exposure).where(*mine))
    return {row.world_id: _totals_from(row) for row in rows}


def world_profits(connection: Connection, world_id: str) -> dict[str, Decimal]:
    """Return what a world has earned at each account that has an entry of it."""
    mine = [_exposure.c.world_id == world_id, _exposure.c.strategy_id == WHOLE_WORLD]
    return {key.account: found.profit for key, found in sorted(_read(connection, mine).items())}


def _read(connection: Connection, which: list) -> dict[ExposureKey, AccountTotals]:  # type: ignore[type-arg]
    rows = connection.execute(select(_exposure).where(*which))
    return {ExposureKey(row.strategy_id, row.account): _totals_from(row) for row in rows}


def _totals_from(row: Any) -> AccountTotals:
    """Convert a row. (Any: its columns.)"""
    return AccountTotals._make([*(Decimal(getattr(row, name)) for name in _AMOUNTS), row.day])
