"""What a plan is compared with before it is carried out: the present shares and positions."""

from collections.abc import Iterable, Mapping
from decimal import Decimal

from sqlmodel import Session

from activities.allocation.store import allocations_of
from activities.ledger.sql import held_positions, positions_of
from qmtl_sdk.contracts.allocations import AllocationChange, WorldAllocation
from qmtl_sdk.contracts.amounts import ZERO
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import PositionKey
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest, PositionSlice


def require_present(session: Session, request: MultiWorldRebalanceRequest, plan: RebalancePlan) -> None:
    """Check that shares and positions are those that a plan was made from.

    Raises QmtlError: E_ETAG, with the etag that a plan from the present ones has.
    """
    found = allocations_of(session)
    held = {item.world_id: item for item in found.allocations}
    _require_shares(held, request.worlds, found.etag)
    now = request.model_copy(
        update={
            "positions": _present_positions(session, request),
            "allocations_etag": request.allocations_etag and found.etag,
        }
    )
    plan.require_etag(now.etag)


def require_marks(session: Session, request: MultiWorldRebalanceRequest) -> None:
    """Check that each mark is between half and twice the ledger's newest price of its instrument.

    Strategies cross at marks, and limits of orders are checked at them. Raises QmtlError (E_MARK).
    """
    newest = dict[tuple[str, str], tuple[str, Decimal]]()
    for change in request.worlds:
        keys = [
            PositionKey(item.strategy_id, item.venue, item.symbol)
            for item in request.positions
            if item.world_id == change.world_id
        ]
        for key, (_, position) in positions_of(session.connection(), change.world_id, keys).items():
            known = newest.get((key.account, key.symbol), ("", ZERO))
            if position.mark:
                newest[key.account, key.symbol] = max(known, (position.marked_at, position.mark))
    for item in request.positions:
        _, price = newest.get((item.venue, item.symbol), ("", item.mark))
        if not price <= 2 * item.mark <= 4 * price:
            raise QmtlError(
                "E_MARK",
                f"the mark of {item.symbol} is {item.mark:f}, and its newest fill in the ledger {price:f}",
                "give the present price; if it is, book an adjustment at it first",
                symbol=item.symbol,
            )


def _require_shares(
    held: Mapping[str, WorldAllocation], changes: Iterable[AllocationChange], etag: str
) -> None:
    for change in changes:
        present = held.get(change.world_id)
        weight = present.weight if present else ZERO
        own = present.strategies if present else {}
        if weight != change.before:
            raise QmtlError(
                "E_ETAG",
                f"{change.world_id} has a share of {weight:f}, not {change.before:f}",
                "plan again from the present shares, and have the new plan approved",
                etag=etag,
            )
        for item in change.strategies:
            if own.get(item.strategy_id, ZERO) != item.before:
                raise QmtlError(
                    "E_ETAG",
                    f"{item.strategy_id[:40]} of {change.world_id} has a share of "
                    f"{own.get(item.strategy_id, ZERO):f}, not {item.before:f}",
                    "plan again from the present shares, and have the new plan approved",
                    etag=etag,
                )


def _present_positions(session: Session, request: MultiWorldRebalanceRequest) -> tuple[PositionSlice, ...]:
    """Return the positions of the request's worlds, with the marks that the request has, sorted."""
    given = {item.key: item for item in request.positions}
    found = []
    for change in request.worlds:
        for key, position in held_positions(session.connection(), change.world_id).items():
            known = given.get((change.world_id, *key))
            found.append(
                PositionSlice(
                    world_id=change.world_id,
                    strategy_id=key.strategy_id,
                    venue=key.account,
                    symbol=key.symbol,
                    quantity=position.quantity,
                    mark=known.mark if known else position.mark,
                )
            )
    return tuple(sorted(found, key=lambda item: item.key))
