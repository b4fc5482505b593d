"""How a run ends: open orders are cancelled, what came of each trade is written, worlds are unlocked."""

from collections.abc import Iterable
from decimal import Decimal

from pydantic import TypeAdapter
from sqlalchemy import select, update
from sqlmodel import Session
from sqlmodel import select as select_rows

from activities.fence.cancelling import Selection, cancel_open
from activities.fence.open_order import is_open
from activities.fence.order_lists import order_records
from activities.fence.state import lock_for_rebalancing, locked_fence
from activities.rebalancing.ordering import open_orders
from activities.rebalancing.requests import start_of
from activities.rebalancing.rows import (
    MAX_OUTCOME,
    REBALANCING,
    counts_by_state,
    notional,
    record,
    summary_row,
    worlds_of,
)
from activities.storage.database import Database
from activities.storage.tables import RebalancingRow, RebalancingTradeRow
from activities.storage.transactions import Transaction, table_of, utc_now
from qmtl_sdk.contracts.amounts import EXACT, ZERO, negated
from qmtl_sdk.contracts.orders import OrderRecord
from qmtl_sdk.contracts.rebalance_runs import RebalanceOutcome, RebalanceReport

_trade = table_of(RebalancingTradeRow)

_OUTCOME: TypeAdapter[RebalanceOutcome] = TypeAdapter(RebalanceOutcome)

# Orders whose ends are read at once.
_AT_ONCE = 500


class SqlRebalanceEnds:
    """Cancels what is open of runs, and ends them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open_orders(self, run_id: str) -> tuple[int, bool]:
        """Count the open orders of a run. Also returns whether it was aborted."""
        with self._database.read() as session:
            return open_orders(session.connection(), run_id), bool(summary_row(session, run_id).aborted_by)

    def cancel(self, run_id: str, why: str) -> None:
        """Cancel what is open of a run: at once where it was not sent, otherwise at its venue."""
        with self._database.read() as session:
            worlds = worlds_of(summary_row(session, run_id))
        for world_id in worlds:
            with self._database.write(REBALANCING, bookkeeping=True) as tx:
                fence = locked_fence(tx, world_id)
                mine = (_trade.c.run_id == run_id, _trade.c.world_id == world_id, _trade.c.state == "ordered")
                ids = select(_trade.c.order_id).where(*mine, is_open(_trade.c.order_id))
                found = list(tx.connection.execute(ids).scalars())
                if found:
                    cancel_open(tx, fence, why, True, Selection(order_ids=found))

    def settle(self, run_id: str) -> int:
        """Write what was filled of trades whose orders have ended. Returns how many have not ended."""
        while True:
            with self._database.write(REBALANCING, bookkeeping=True) as tx:
                query = select_rows(RebalancingTradeRow).where(
                    RebalancingTradeRow.run_id == run_id,
                    RebalancingTradeRow.state == "ordered",
                    ~is_open(_trade.c.order_id),
                )
                trades = tx.session.exec(query.order_by(RebalancingTradeRow.world_id).limit(_AT_ONCE)).all()
                for trade, found in _ends(tx.session, trades):
                    self._end_trade(tx, trade, found)
            if len(trades) < _AT_ONCE:
                break
        with self._database.read() as session:
            return open_orders(session.connection(), run_id)

    @staticmethod
    def _end_trade(tx: Transaction, trade: RebalancingTradeRow, found: OrderRecord | None) -> None:
        quantity = found.fill.quantity if found is not None and found.fill is not None else ZERO
        signed = quantity if Decimal(trade.quantity) > 0 else negated(quantity)
        whole = signed == Decimal(trade.quantity)
        reason = "" if whole or found is None else f"{found.state.value}: {found.changes[-1].reason}"
        of = (_trade.c.run_id == trade.run_id, _trade.c.number == trade.number)
        values = {"state": "filled" if whole else "unfilled", "filled": str(signed), "reason": reason[:500]}
        tx.connection.execute(update(_trade).where(*of).values(**values))

    def conclude(self, run_id: str, outcome: RebalanceOutcome, reason: str = "") -> RebalanceOutcome:
        """End a run, once: write its report and unlock its worlds. Returns how it ended.

        `completed` is `partial` where a trade was not filled as a whole.
        """
        with self._database.write(REBALANCING) as tx:
            row = start_of(tx, run_id)
            if row.ended_at is not None:
                return _OUTCOME.validate_python(row.outcome)
            for world_id in worlds_of(row):
                fence = locked_fence(tx, world_id)
                lock_for_rebalancing(tx, fence, run_id, locked=False)
            if row.aborted_by and outcome != "rolled_back":
                outcome = "aborted"
            if row.locked_at:
                if outcome == "rolled_back":
                    outcome = "partial"  # its shares have changed
                given_up = "planned when the run ended"
                left = (_trade.c.run_id == run_id, _trade.c.state == "planned")
                tx.connection.execute(update(_trade).where(*left).values(state="refused", reason=given_up))
                still = (_trade.c.run_id == run_id, _trade.c.state == "ordered")
                tx.connection.execute(
                    update(_trade).where(*still).values(state="unfilled", reason="still open at its venue")
                )
                report, missing = _report(tx.session, row)
                row.report = report.model_dump_json()
                if outcome == "completed" and missing:
                    outcome, reason = "partial", missing
                elif missing:
                    reason = f"{reason}; {missing}" if reason else missing
            row.outcome, row.reason, row.ended_at = outcome, reason[:MAX_OUTCOME], utc_now()
            tx.session.add(row)
            record(tx, row, "rebalancing.ended", {"outcome": outcome, "reason": row.reason})
            return outcome


def _ends(
    session: Session, trades: Iterable[RebalancingTradeRow]
) -> list[tuple[RebalancingTradeRow, OrderRecord | None]]:
    """Return trades with the records of their orders; None where the record was archived."""
    of_world: dict[str, list[RebalancingTradeRow]] = {}
    for trade in trades:
        of_world.setdefault(trade.world_id, []).append(trade)
    found = []
    for world_id, mine in of_world.items():
        ids = [trade.order_id for trade in mine]
        records = {item.order.order_id: item for item in order_records(session.connection(), world_id, ids)}
        found += [(trade, records.get(trade.order_id)) for trade in mine]
    return found


def _report(session: Session, row: RebalancingRow) -> tuple[RebalanceReport, str]:
    """Add up what came of a run. Also returns what is missing, in words; empty where nothing is."""
    names = ("quantity", "filled", "crossed", "mark")
    query = select(*(_trade.c[name] for name in names)).where(_trade.c.run_id == row.run_id)
    trades = session.connection().execute(query).all()
    numbers = [
        (Decimal(quantity), Decimal(filled or 0), Decimal(mark)) for quantity, filled, _, mark in trades
    ]
    missing = notional(
        (EXACT.subtract(quantity, filled), mark) for quantity, filled, mark in numbers if quantity
    )
    turnover = notional((quantity, mark) for quantity, _, mark in numbers)
    counts = counts_by_state(session, row.run_id)
    report = RebalanceReport(
        orders=sum(1 for quantity, *_ in numbers if quantity)
        - counts.get("refused", 0)
        - counts.get("skipped", 0),
        filled=sum(1 for quantity, filled, _ in numbers if quantity and quantity == filled),
        crossed=sum(1 for item in trades if Decimal(item.crossed)),
        turnover=turnover,
        missing_notional=missing,
        tracking_error=float(missing / turnover) if turnover else 0.0,
    )
    words = [
        f"{counts[state]} {text}"
        for state, text in (
            ("unfilled", "not filled as a whole"),
            ("refused", "refused"),
            ("skipped", "left to newer targets"),
        )
        if counts.get(state)
    ]
    return report, f"of the trades, {', '.join(words)}" if words else ""
