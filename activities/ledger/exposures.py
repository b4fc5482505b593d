"""What strategies and worlds hold and have earned at each account, added up as entries are booked."""

from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, select, text, tuple_

from activities.storage.tables import ExposureRow
from activities.storage.transactions import Transaction, table_of
from qmtl_sdk.contracts.amounts import EXACT, ZERO, plain
from qmtl_sdk.contracts.ledger import Position, PositionKey

_exposure = table_of(ExposureRow)

WHOLE_WORLD = ""
"""The strategy_id of a world's own row."""

# The condition of the index `exposure_account`, in its exact words.
_OF_WORLDS = text("exposure.strategy_id = ''")


class Exposure(NamedTuple):
    """The notional of all positions at their marks, what was earned with them, and the highest of that."""

    gross: Decimal = ZERO
    profit: Decimal = ZERO
    peak: Decimal = ZERO

    def moved(self, gross: Decimal, profit: Decimal) -> "Exposure":
        """Return the exposure after one of its positions has changed by these."""
        profit = EXACT.add(self.profit, profit)
        return Exposure(EXACT.add(self.gross, gross), profit, max(self.peak, profit))


def gross_of(position: Position) -> Decimal:
    """Return the notional of a position at its mark, positive."""
    return EXACT.multiply(position.quantity.copy_abs(), position.mark)


def profit_of(position: Position) -> Decimal:
    """Return what was earned with a position: cash, and what is held at its mark."""
    return EXACT.add(position.cash, EXACT.multiply(position.quantity, position.mark))


class ExposureKey(NamedTuple):
    """Whose exposure it is in a world: a strategy's, or `WHOLE_WORLD`, at an account."""

    strategy_id: str
    account: str


class Exposures:
    """The exposures of a world as entries change them."""

    def __init__(self, found: dict[ExposureKey, Exposure] | None = None) -> None:
        self.found = found or {}

    def move(self, key: PositionKey, before: Position, after: Position) -> None:
        """Take a change of a position."""
        gross = EXACT.subtract(gross_of(after), gross_of(before))
        profit = EXACT.subtract(profit_of(after), profit_of(before))
        for mine in owners(key):
            self.found[mine] = self.found.get(mine, Exposure()).moved(gross, profit)

    def store(self, tx: Transaction, world_id: str) -> None:
        """Write them. The caller holds the world's fence."""
        rows = [
            {
                "world_id": world_id,
                **key._asdict(),
                **{name: str(plain(v)) for name, v in found._asdict().items()},
            }
            for key, found in sorted(self.found.items())
        ]
        if rows:
            tx.upsert_values(_exposure, rows)


def owners(key: PositionKey) -> tuple[ExposureKey, ExposureKey]:
    """Return whose exposures a position counts in."""
    return ExposureKey(key.strategy_id, key.account), ExposureKey(WHOLE_WORLD, key.account)


def exposures_of(
    connection: Connection, world_id: str, keys: Iterable[ExposureKey]
) -> dict[ExposureKey, Exposure]:
    """Read exposures of a world; those that never were are left out."""
    wanted = sorted(set(keys))
    if not wanted:
        return {}
    these = tuple_(_exposure.c.strategy_id, _exposure.c.account).in_(wanted)
    return _read(connection, [_exposure.c.world_id == world_id, these])


def all_exposures(connection: Connection, world_id: str) -> dict[ExposureKey, Exposure]:
    """Read all exposures of a world."""
    return _read(connection, [_exposure.c.world_id == world_id])


def account_exposures(connection: Connection, account: str) -> dict[str, Exposure]:
    """Read the exposure of each world at an account."""
    mine = (_OF_WORLDS, _exposure.c.account == account)
    rows = connection.execute(select(_exposure).where(*mine))
    return {row.world_id: _exposure_of(row) for row in rows}


def _read(connection: Connection, which: list) -> dict[ExposureKey, Exposure]:  # type: ignore[type-arg]
    rows = connection.execute(select(_exposure).where(*which))
    return {ExposureKey(row.strategy_id, row.account): _exposure_of(row) for row in rows}


def _exposure_of(row: object) -> Exposure:
    return Exposure(*(Decimal(getattr(row, name)) for name in Exposure._fields))
