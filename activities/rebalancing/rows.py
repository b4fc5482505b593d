"""The rows of runs and of their trades, as the steps of a run and people read them."""

import json
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final

from sqlalchemy import func
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from activities.applies.status import approvals_of
from activities.rebalancing.goals import Goal
from activities.rebalancing.trades import PlannedTrade, trades_of
from activities.storage.tables import RebalancingRow, RebalancingTradeRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from qmtl_sdk.contracts.amounts import EXACT, ZERO, exact_sum
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan
from qmtl_sdk.contracts.rebalance_runs import (
    ALL_WORLDS,
    MAX_SHOWN_TRADES,
    RebalanceApply,
    RebalanceReport,
    RebalanceStatus,
    RebalanceTrade,
)

MAX_OUTCOME = 1000
"""Characters of an outcome's reason that are stored."""

REBALANCING: Final = "rebalancing"
"""What approvals of runs are about, and the actor of their steps."""


def run_row(session: Session, run_id: str, fresh: bool = False) -> RebalancingRow:
    """Read a run's row; `fresh`: as it is now. Raises QmtlError (E_REBALANCE_UNKNOWN)."""
    row = session.get(RebalancingRow, run_id, populate_existing=fresh)
    if row is None:
        raise QmtlError(
            "E_REBALANCE_UNKNOWN",
            f"there is no rebalancing {run_id[:80]!r}",
            "qmtl world rebalance-status lists them",
        )
    return row


def worlds_of(row: RebalancingRow) -> list[str]:
    """Return the worlds of a run, sorted."""
    return list(json.loads(row.worlds))


def body_of(row: RebalancingRow) -> RebalanceApply:
    """Return what was requested."""
    return RebalanceApply.model_validate_json(row.body)


def plan_of(row: RebalancingRow) -> RebalancePlan:
    """Return the plan of a run."""
    return RebalancePlan.model_validate_json(row.plan)


def title_of(requested: RebalanceApply) -> str:
    """Say in one line what a run changes."""
    changes = requested.request.worlds
    first = ", ".join(f"{item.world_id} {item.before:f} → {item.after:f}" for item in changes[:5])
    return f"rebalance {first}{f' and {len(changes) - 5} more worlds' if len(changes) > 5 else ''}"


def summary_row(session: Session, run_id: str) -> RebalancingRow:
    """Read a run's row without its body and plan, which may be large. Raises as `run_row`."""
    row = session.exec(SUMMARIES.where(RebalancingRow.run_id == run_id)).first()
    return row or run_row(session, run_id)


SUMMARIES = select(RebalancingRow).options(
    defer(RebalancingRow.body),  # type: ignore[arg-type]  # a column of the class
    defer(RebalancingRow.plan),  # type: ignore[arg-type]
)
"""Selects runs without what may be large in them."""


def status_of(session: Session, row: RebalancingRow, whole: bool = True) -> RebalanceStatus:
    """Read a run: with `whole` its plan, its trades and approvals too."""
    trades: Sequence[RebalanceTrade] = ()
    plan = plan_of(row) if whole else None
    if whole and row.locked_at:
        query = select(RebalancingTradeRow).where(RebalancingTradeRow.run_id == row.run_id)
        rows = session.exec(query.order_by(col(RebalancingTradeRow.number)).limit(MAX_SHOWN_TRADES)).all()
        trades = [shown(trade) for trade in rows]
    elif plan is not None:
        planned = trades_of(plan, body_of(row).request, row.run_id)
        trades = [trade.shown() for trade in planned[:MAX_SHOWN_TRADES]]
    return RebalanceStatus.model_validate(
        {
            "run_id": row.run_id,
            "worlds": worlds_of(row),
            "state": row.outcome or row.state,
            "outcome": row.outcome or None,
            "reason": row.reason,
            "title": row.title,
            "requested_by": row.requested_by,
            "requested_at": row.requested_at,
            "aborted_by": row.aborted_by,
            "abort_reason": row.abort_reason,
            "approvals_required": row.approvals,
            "approvals": approvals_of(session, ALL_WORLDS, row.run_id, REBALANCING) if whole else (),
            "deadline": row.deadline or None,
            "ended_at": row.ended_at,
            "plan": plan,
            "trades": trades,
            "report": RebalanceReport.model_validate_json(row.report) if row.report else None,
        }
    )


def trade_row(run_id: str, number: int, trade: PlannedTrade, goal: Goal) -> dict[str, object]:
    """Return the row of a trade; one without an order is done."""
    return {
        "run_id": run_id,
        "number": number,
        "world_id": trade.world_id,
        "strategy_id": trade.strategy_id,
        "account": trade.account,
        "symbol": trade.symbol,
        "step": trade.step,
        "quantity": str(trade.quantity),
        "crossed": str(trade.crossed),
        "mark": str(trade.mark),
        "price": str(trade.price),
        "time_in_force": trade.time_in_force,
        "reduce_only": trade.reduce_only,
        "goal": str(goal.units),
        "follows": goal.follows,
        "order_id": trade.order_id,
        "state": "planned" if trade.quantity else "filled",
        "filled": "",
        "reason": "",
    }


def shown(row: RebalancingTradeRow) -> RebalanceTrade:
    """Return a trade as people see it."""
    return RebalanceTrade.model_validate(
        {
            "world_id": row.world_id,
            "strategy_id": row.strategy_id,
            "account": row.account,
            "symbol": row.symbol,
            "quantity": row.quantity,
            "crossed": row.crossed,
            "mark": row.mark,
            "reduces": row.step == "reductions",
            "order_id": row.order_id,
            "state": row.state,
            "filled": row.filled or ZERO,
            "reason": row.reason,
        }
    )


def counts_by_state(session: Session, run_id: str) -> dict[str, int]:
    """Count the trades of a run in each state."""
    query = select(RebalancingTradeRow.state, func.count()).where(RebalancingTradeRow.run_id == run_id)
    return {row[0]: row[1] for row in session.exec(query.group_by(RebalancingTradeRow.state))}


def notional(values: Iterable[tuple[Decimal, Decimal]]) -> Decimal:
    """Add up quantities times marks, without their signs."""
    return exact_sum(EXACT.multiply(quantity.copy_abs(), mark) for quantity, mark in values)


def end_at_once(tx: Transaction, row: RebalancingRow, reason: str) -> None:
    """Complete a run that changes nothing."""
    report = RebalanceReport(
        orders=0, filled=0, crossed=0, turnover=ZERO, missing_notional=ZERO, tracking_error=0.0
    )
    row.report, row.approvals = report.model_dump_json(), 0
    row.outcome, row.reason, row.ended_at = "completed", reason[:MAX_OUTCOME], utc_now()
    tx.session.add(row)
    record(tx, row, "rebalancing.ended", {"outcome": row.outcome, "reason": row.reason})


def record(tx: Transaction, row: RebalancingRow, action: str, after: dict[str, object]) -> None:
    """Audit and publish a step of a run, in each of its worlds."""
    tx.record_all(
        RecordedChange(
            action,
            world_id,
            row.run_id,
            after=after,
            correlation_id=row.run_id,
            event="rebalancing.state",
            data={"world_id": world_id, "run_id": row.run_id, "state": row.outcome or row.state},
        )
        for world_id in worlds_of(row)
    )
