"""Reconciliations in the database: what a broker's account is compared with, and what was found.

The router compares; a difference that lasts halts the worlds that it concerns. Reports of a broker and halts
take the world's fence, as everything does that changes what a world may do.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from sqlalchemy import Connection, select

from activities.fence.fills import new_fills
from activities.fence.halts import halt
from activities.fence.log_line import ACCEPTED, IS_VERDICT
from activities.fence.state import locked_fence
from activities.fence.store import TRADES
from activities.ledger.accounts import Holdings, holdings_of
from activities.storage.database import Database
from activities.storage.readable import readable
from activities.storage.tables import ActivationRow, OpenOrderRow, OrderLogRow, ReconciliationRow
from activities.storage.transactions import table_of
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.domains import MODE_OF, Domain
from qmtl_sdk.contracts.fills import MAX_FILLS, Fill
from qmtl_sdk.contracts.orders import Order, OrderReport
from qmtl_sdk.contracts.reconciliation import Reconciliation

_log = table_of(OrderLogRow)
_open = table_of(OpenOrderRow)
_activation = table_of(ActivationRow)
_result = table_of(ReconciliationRow)

# Milliseconds that a halt waits for a world's fence; where it is held, the next comparison halts it.
_LOCK_MS = 2000

# Ids in one statement.
_AT_ONCE = 5000


class PlacedOrder(NamedTuple):
    """An order that a world has accepted, and whether it is open."""

    world_id: str
    order: Order
    is_open: bool


class SqlReconciliations:
    """What brokers' accounts are compared with, and the newest result of each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, account: str) -> Reconciliation | None:
        """Return the newest result of an account; None where there is none that can be read."""
        query = select(_result.c.body).where(_result.c.account == account)
        with self._database.read() as session:
            rows = session.connection().execute(query).scalars()
            found = readable(rows, Reconciliation.model_validate_json)
        return found[0] if found else None

    def of_world(self, world_id: str) -> list[Reconciliation]:
        """List the newest result of each account, with what concerns a world, by account.

        Raises QmtlError (E_WORLD_UNKNOWN).
        """
        query = select(_result.c.body).order_by(_result.c.account)
        with self._database.read() as session:
            world_row(session, world_id)
            rows = session.connection().execute(query).scalars()
            found = readable(rows, Reconciliation.model_validate_json)
        return [item.of_world(world_id) for item in found]

    def save(self, result: Reconciliation) -> None:
        """Replace the result of an account."""
        row = ReconciliationRow(
            account=result.account, at=result.at.isoformat(), body=result.model_dump_json()
        )
        with self._database.write("router", bookkeeping=True) as tx:
            tx.upsert(row)

    def holdings(self, account: str) -> Holdings:
        """Return what the ledgers of all worlds hold at an account."""
        with self._database.read() as session:
            return holdings_of(session.connection(), account)

    def trading(self, domain: Domain) -> set[str]:
        """Return the worlds in which a strategy trades in a domain now."""
        query = select(_activation.c.world_id).where(TRADES, _activation.c.mode == MODE_OF[domain.value])
        query = query.distinct()
        with self._database.read() as session:
            return set(session.connection().execute(query).scalars())

    def placed(self, ids: Collection[str]) -> dict[str, PlacedOrder]:
        """Find the accepted orders with these ids; others, and those that are archived, are left out."""
        with self._database.read() as session:
            return _placed(session.connection(), ids)

    def unrecorded(self, fills: Mapping[str, Sequence[Fill]]) -> dict[str, list[OrderReport]]:
        """Return reports by world of those fills, by order, that are not booked as they are.

        Fills of orders that no world has accepted are left out: they are somebody else's.
        """
        found = dict[str, list[OrderReport]]()
        with self._database.read() as session:
            connection = session.connection()
            placed = _placed(connection, fills)
            for world in sorted({item.world_id for item in placed.values()}):
                orders = [item.order for item in placed.values() if item.world_id == world]
                fresh, reused = new_fills(connection, world, orders, fills)
                wrong = {fill.fill_id for fill in reused}
                for order in orders:
                    new = [
                        *fresh.get(order.order_id, ()),
                        *(fill for fill in fills[order.order_id] if fill.fill_id in wrong),
                    ]
                    found.setdefault(world, []).extend(_reports(order.order_id, new))
        return {world: reports for world, reports in found.items() if reports}

    def halt(self, world_id: str, reason: str) -> bool:
        """Halt a world that is not halted. Returns whether it was halted. Raises LockHeldError."""
        with self._database.write("router") as tx:
            fence = locked_fence(tx, world_id, _LOCK_MS)
            if fence.halted:
                return False
            halt(tx, fence, reason)
            return True


def _placed(connection: Connection, ids: Collection[str]) -> dict[str, PlacedOrder]:
    found, left = dict[str, PlacedOrder](), iter(ids)
    while part := list(islice(left, _AT_ONCE)):
        opened = set(connection.execute(select(_open.c.order_id).where(_open.c.order_id.in_(part))).scalars())
        accepted = select(_log.c.ref, _log.c.world_id, _log.c.body).where(
            _log.c.ref.in_(part), IS_VERDICT, _log.c.kind == ACCEPTED
        )
        for row in connection.execute(accepted):
            order = Order.model_validate_json(row.body)
            found[row.ref] = PlacedOrder(row.world_id, order, row.ref in opened)
    return found


def _reports(order_id: str, fills: Sequence[Fill]) -> Iterator[OrderReport]:
    """Yield reports of fills that leave the state of their order to its own look-up."""
    for start in range(0, len(fills), MAX_FILLS):
        part = tuple(fills[start : start + MAX_FILLS])
        yield OrderReport(order_id=order_id, state="sent", fills=part)
