"""The ledger: fills and bookings that people report, positions, and the ledger against the order log."""

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from api.auth.access import CurrentCaller, GuardedRoute
from api.auth.limits import OneAtATime
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.equity_report import EquityReport, ReportQuery
from qmtl_sdk.contracts.fills import FillBatch, FillsRecorded
from qmtl_sdk.contracts.ledger import Booking, HeldPosition, LedgerCheck, LedgerLine, PositionFilter
from qmtl_sdk.contracts.position_summary import LARGEST, PositionSummary
from qmtl_sdk.contracts.reconciliation import Reconciliation

router = APIRouter(tags=["ledger"], route_class=GuardedRoute)

# One of a thousand strategies takes a second of a processor, beside orders and halts: one at a time in all.
_REPORTS = OneAtATime("equity report")
# One reads a whole order log, for minutes where it is long: one at a time in all.
_CHECKS = OneAtATime("check of a ledger")

_Strategy = Annotated[str, Query(max_length=128)]


@router.post("/fills", summary="Report fills of orders that a venue executed")
def fills(batch: FillBatch, state: State, caller: CurrentCaller) -> FillsRecorded:
    """Idempotent by a fill's id, its account and symbol. All are recorded and booked, or none.

    Also of orders that have ended. Their fills make up the quantity that was ordered at most.
    """
    caller.require_role(batch.world_id, Role.OPERATOR)
    return FillsRecorded(recorded=state.stores.fills.record(batch, caller.subject))


@router.get("/worlds/{world_id}/positions", summary="List what strategies hold, now or as of a time")
def positions(world_id: str, state: State, asked: Annotated[PositionFilter, Query()]) -> list[HeldPosition]:
    """A page at a time: `after` is a JSON list of the last one's strategy_id, account and symbol."""
    return state.stores.ledger.positions(world_id, asked)


@router.get("/worlds/{world_id}/positions/summary", summary="Add up what strategies hold and have earned")
def summary(
    world_id: str, state: State, largest: Annotated[int, Query(ge=0, le=100)] = LARGEST
) -> PositionSummary:
    """In all and since midnight UTC; with the `largest` positions of each strategy."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return state.stores.position_summary.summary(world_id, midnight, largest)


@router.get("/worlds/{world_id}/report", summary="Report the equity of strategies beside their backtests")
def report(world_id: str, state: State, query: Annotated[ReportQuery, Query()]) -> EquityReport:
    """By the ledger: profit, return, drawdown, exposure, turnover and costs of the last days (UTC)."""
    with nullcontext() if query.strategy_id else _REPORTS.held("this Gateway"):
        return state.stores.equity_report.report(world_id, query, datetime.now(UTC))


@router.get("/worlds/{world_id}/ledger", summary="List the entries of a ledger, oldest first")
def ledger(
    world_id: str,
    state: State,
    after: Annotated[int, Query(ge=0, lt=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    strategy_id: _Strategy = "",
) -> list[LedgerLine]:
    return state.stores.ledger.lines(world_id, after, limit, strategy_id)


@router.get(
    "/worlds/{world_id}/reconciliation", summary="List what brokers' accounts hold against the ledger"
)
def reconciliation(world_id: str, state: State) -> list[Reconciliation]:
    """The newest comparison of each account, with the positions and orders that concern the world.

    Figures are those of the account: of all worlds that trade in it.
    """
    return state.stores.reconciliations.of_world(world_id)


@router.post("/worlds/{world_id}/ledger", summary="Book a dividend, split, fee, adjustment or reversal")
def book(world_id: str, booking: Booking, state: State, caller: CurrentCaller) -> FillsRecorded:
    """Idempotent by `booking_id` and account."""
    return FillsRecorded(recorded=int(state.stores.bookings.record(world_id, booking, caller.subject)))


@router.post("/worlds/{world_id}/ledger/verify", summary="Compare the ledger with the order log")
def verify(world_id: str, state: State) -> LedgerCheck:
    with _CHECKS.held("this Gateway"):
        return state.stores.ledger_projection.verify(world_id)


@router.post("/worlds/{world_id}/ledger/rebuild", summary="Book the ledger anew from the order log")
def rebuild(world_id: str, state: State, caller: CurrentCaller) -> LedgerCheck:
    return state.stores.ledger_projection.rebuild(world_id, caller.subject)
