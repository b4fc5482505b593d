"""The orders of a run: some at a time, through the fence, each exactly once.

An order is what the position lacks of the trade's goal in the moment of ordering, counting everything that is
open, and never more than was planned. Its id follows from the run and its place, and its trade says in the
same transaction that it was ordered: a repetition, after a crash at any point, orders what is left.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update
from sqlmodel import Session, col
from sqlmodel import select as select_rows

from activities.fence.deciding import Grounds, NewRequests
from activities.fence.flattening_rows import flattening_rows
from activities.fence.halts import store_counts
from activities.fence.open_order import is_open
from activities.fence.position_limits import AccountLimits
from activities.fence.rules import REBALANCING as ORIGIN
from activities.fence.rules import BreakerCount
from activities.fence.sizing import SymbolState, WorldSizing
from activities.fence.snapshot import FenceHeldError, FenceSnapshot
from activities.fence.statements import statements_of
from activities.fence.targets import TargetKey, WorldSizings, holdings_of
from activities.order_settings import OrdersSettings
from activities.rebalancing.orders import order_of
from activities.rebalancing.rows import REBALANCING, summary_row
from activities.rebalancing.trades import Step
from activities.storage.database import Database
from activities.storage.tables import RebalancingTradeRow
from activities.storage.transactions import Transaction, table_of, utc_before, utc_now
from qmtl_sdk.brokerage.fills import in_lots
from qmtl_sdk.contracts.amounts import EXACT, exact_sum, plain
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.orders import Order

_trade = table_of(RebalancingTradeRow)

# Orders of one transaction: it holds the fence of a world for some tens of milliseconds.
_AT_ONCE = 200

_END = (
    update(_trade)
    .where(_trade.c.run_id == bindparam("run"), _trade.c.number == bindparam("place"))
    .values(state=bindparam("new_state"), reason=bindparam("why"), quantity=bindparam("amount"))
)


class Progress(Enum):
    """What came of a turn: `ORDERED` some, `WAITS` for what may come, or `DONE`: nothing is left."""

    ORDERED = "ordered"
    WAITS = "waits"
    DONE = "done"


class SqlRebalanceOrders:
    """Orders the trades of runs."""

    def __init__(self, database: Database, settings: OrdersSettings) -> None:
        self._database = database
        self._domains = {account: domain for domain, account in settings.accounts.items()}
        self._no_router_after = timedelta(seconds=settings.no_router_after_s)
        self._accounts = AccountLimits.of(settings)
        self._sizings = WorldSizings()
        self._statements = statements_of(database)

    def begin_step(self, run_id: str, step: Step) -> None:
        """Note which trades of a run are ordered now."""
        with self._database.write(REBALANCING, bookkeeping=True) as tx:
            row = summary_row(tx.session, run_id)
            if row.ended_at is None and row.state != step:
                row.state = step
                tx.session.add(row)

    def order_some(self, run_id: str, step: Step) -> Progress:
        """Order some of what is planned in a step, in each world that can go on.

        A world waits where a router must come first, where its circuit breaker would trip, or where another
        transaction holds its fence. After an abort nothing is left.
        """
        with self._database.read() as session:
            row = summary_row(session, run_id)
            planned = _worlds_with_planned(session, run_id, step)
        if row.aborted_by or row.ended_at is not None:
            return Progress.DONE
        found = [self._order_in(run_id, step, world_id) for world_id in planned]
        if not found:
            return Progress.DONE
        return Progress.ORDERED if Progress.ORDERED in found else Progress.WAITS

    def _order_in(self, run_id: str, step: Step, world_id: str) -> Progress:
        with self._database.read() as session:
            found = _planned(session, run_id, step, world_id)
        if not found:
            return Progress.DONE
        try:
            with self._database.write(REBALANCING, bookkeeping=True) as tx:
                wanted = [self._order(trade, 0) for trade in found]
                snapshot = self._statements.read(tx.connection, wanted, set(), wait=True)
                if summary_row(tx.session, run_id).aborted_by:
                    return Progress.DONE
                return self._order_batch(tx, snapshot, _still_planned(tx.session, found))
        except FenceHeldError:
            return Progress.WAITS

    def _order_batch(
        self, tx: Transaction, snapshot: FenceSnapshot, planned: Sequence[RebalancingTradeRow]
    ) -> Progress:
        """Order trades of one world. The transaction holds its fence."""
        if not planned:
            return Progress.ORDERED
        world_id = planned[0].world_id
        routed = snapshot.router_at > utc_before(self._no_router_after)
        if not routed:  # live orders would be refused for something that passes
            planned = [item for item in planned if self._domains.get(item.account) is not Domain.LIVE]
        planned = planned[: _room(snapshot, world_id)]
        if not planned:
            return Progress.WAITS
        ends = list[dict[str, Any]]()
        orders = dict[str, Order]()
        of_order = {trade.order_id: trade for trade in planned}
        for trade, quantity, reason in self._lacking(tx, world_id, planned):
            earlier = snapshot.earlier.get(trade.order_id)
            if earlier is not None:
                is_mine = earlier.order().origin == ORIGIN and earlier.kind == "accepted"
                why = "" if is_mine else "its id was used by another order"
                ends.append(_end(trade, "ordered" if is_mine else "refused", why))
            elif reason:
                ends.append(_end(trade, "skipped", reason))
            else:
                orders[trade.order_id] = self._order(trade, snapshot.fences[world_id].epoch, quantity)
        ends += self._accept(tx, snapshot, orders, of_order, routed)
        tx.connection.execute(_END, ends)
        return Progress.ORDERED

    def _lacking(
        self, tx: Transaction, world_id: str, planned: Sequence[RebalancingTradeRow]
    ) -> list[tuple[RebalancingTradeRow, Decimal, str]]:
        """Return what each position lacks of its goal, or why it is left alone."""
        keys = {trade.number: self._key(trade) for trade in planned}
        holdings = holdings_of(tx.connection, set(keys.values()), self._accounts.account_of)
        sizing = self._sizings.of(tx.connection, {world_id})[world_id]
        closing = {row.strategy_id for row in flattening_rows(tx.connection, world_id, None)}
        found = []
        for trade in planned:
            quantity, reason = _lacks(trade, holdings[keys[trade.number]], sizing)
            if trade.account not in self._domains:
                reason = f"no domain trades in the account {trade.account}"
            elif trade.strategy_id in closing:
                reason = "its positions are being closed"
            found.append((trade, quantity, reason))
        return found

    def _key(self, trade: RebalancingTradeRow) -> TargetKey:
        domain = self._domains.get(trade.account, Domain.DRYRUN)
        return TargetKey(trade.world_id, trade.strategy_id, domain.value, trade.symbol)

    def _order(self, trade: RebalancingTradeRow, epoch: int, quantity: Decimal | None = None) -> Order:
        return order_of(trade, self._domains.get(trade.account, Domain.DRYRUN), epoch, quantity)

    def _accept(
        self,
        tx: Transaction,
        snapshot: FenceSnapshot,
        orders: Mapping[str, Order],
        trades: Mapping[str, RebalancingTradeRow],
        routed: bool,
    ) -> list[dict[str, Any]]:
        """Decide about orders by the rules of the fence, and write what was decided."""
        if not orders:
            return []
        grounds = Grounds(snapshot, routed, self._accounts, self._sizings)
        decided = NewRequests(tx, orders.values(), grounds)
        self._statements.write(tx.connection, list(decided.lines.values()))
        store_counts(tx, snapshot.fences, decided.counts)
        return [
            _end(
                trades[order_id],
                "refused" if new.line.reason else "ordered",
                new.line.reason,
                orders[order_id].signed,
            )
            for order_id, new in decided.lines.items()
        ]


def open_orders(connection: Connection, run_id: str) -> int:
    """Count the orders of a run that have not ended."""
    mine = (_trade.c.run_id == run_id, _trade.c.state == "ordered", is_open(_trade.c.order_id))
    return connection.execute(select(func.count()).select_from(_trade).where(*mine)).scalar_one()


def _lacks(trade: RebalancingTradeRow, holding: SymbolState, sizing: WorldSizing) -> tuple[Decimal, str]:
    """Return what is ordered for a trade, or why nothing is: never more than planned, nor the other way."""
    planned, goal = Decimal(trade.quantity), Decimal(trade.goal)
    if trade.follows and (holding.target is None or holding.target.units != goal):
        return planned, "its strategy has set another target since"
    rules = sizing.instrument(trade.account, trade.symbol)
    reached = exact_sum((holding.position, *(item.quantity for item in holding.working)))
    lacking = in_lots(EXACT.subtract(goal, reached), rules.lot)
    if lacking * planned <= 0:
        return planned, "its position has changed since, and lacks nothing"
    quantity = plain(min(lacking, in_lots(planned, rules.lot), key=Decimal.copy_abs))
    if not quantity or abs(EXACT.multiply(quantity, Decimal(trade.mark))) < rules.min_trade_notional:
        return planned, "its world orders no such small quantity"
    return quantity, ""


def _worlds_with_planned(session: Session, run_id: str, step: Step) -> list[str]:
    mine = (_trade.c.run_id == run_id, _trade.c.step == step, _trade.c.state == "planned")
    query = select(_trade.c.world_id).where(*mine).distinct().order_by(_trade.c.world_id)
    return list(session.connection().execute(query).scalars())


def _planned(session: Session, run_id: str, step: Step, world_id: str) -> Sequence[RebalancingTradeRow]:
    """Return the next trades of a step in a world."""
    query = select_rows(RebalancingTradeRow).where(
        RebalancingTradeRow.run_id == run_id,
        RebalancingTradeRow.step == step,
        RebalancingTradeRow.state == "planned",
        RebalancingTradeRow.world_id == world_id,
    )
    return session.exec(query.order_by(col(RebalancingTradeRow.number)).limit(_AT_ONCE)).all()


def _still_planned(session: Session, trades: Sequence[RebalancingTradeRow]) -> Sequence[RebalancingTradeRow]:
    """Read trades again under the fence, without those that another turn has ordered."""
    numbers = [trade.number for trade in trades]
    mine = (RebalancingTradeRow.run_id == trades[0].run_id, col(RebalancingTradeRow.number).in_(numbers))
    query = select_rows(RebalancingTradeRow).where(*mine, RebalancingTradeRow.state == "planned")
    return session.exec(query.order_by(col(RebalancingTradeRow.number))).all()


def _end(
    trade: RebalancingTradeRow, state: str, reason: str = "", quantity: Decimal | None = None
) -> dict[str, Any]:
    """Return the parameters that say what became of a trade. (Any: of several columns.)"""
    amount = trade.quantity if quantity is None else str(quantity)
    found = {"run": trade.run_id, "place": trade.number, "new_state": state}
    return {**found, "why": reason, "amount": amount}


def _room(snapshot: FenceSnapshot, world_id: str) -> int:
    """Return how many orders a circuit breaker leaves in this minute: half, so that strategies go on too."""
    fence = snapshot.fences[world_id]
    if fence.max_orders is None:
        return _AT_ONCE
    BreakerCount(fence, utc_now())
    return min((max(fence.max_orders - fence.orders, 0) + 1) // 2, _AT_ONCE)
