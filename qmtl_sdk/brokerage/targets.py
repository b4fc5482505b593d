"""Targets of a strategy, and the order that brings a position to its target."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from qmtl_sdk.brokerage.fills import in_lots
from qmtl_sdk.brokerage.models import BPS, CALCULATION, ExecutionModel
from qmtl_sdk.brokerage.orders import OrderTicket
from qmtl_sdk.contracts.amounts import EXACT, rounded
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Side

CloseUnit = Literal["weight", "notional", "units", "quantity"]


@dataclass(frozen=True, slots=True)
class CloseTarget:
    """What a strategy wants of a symbol at a close.

    `unit` of `value`: `weight` is a share of the equity, `notional` an amount of money, `units` a position; a
    `quantity` is no target but an order (positive buys). `price`: the reference price. Without `tradable`,
    nothing is ordered at this close.
    """

    symbol: str
    unit: CloseUnit
    value: Decimal
    price: Decimal | None = None
    tradable: bool = True


def units_of(target: CloseTarget, equity: Decimal, mark: Decimal, lot: Decimal) -> Decimal:
    """Return the position that a target means, in whole lots, rounded toward zero.

    Raises QmtlError: E_EXECUTION where `mark`, the price, is not above 0.
    """
    if not mark > 0:
        raise QmtlError(
            "E_EXECUTION",
            f"{target.symbol} has a price of {mark}, at which no target can be sized",
            "correct the prices, or leave them missing",
        )
    if target.unit in ("units", "quantity"):
        return in_lots(target.value, lot)
    notional = EXACT.multiply(target.value, equity) if target.unit == "weight" else target.value
    return in_lots(CALCULATION.divide(notional, mark), lot)


def ticket_of(
    order_id: str, target: CloseTarget, delta: Decimal, placed_at: int, execution: ExecutionModel
) -> OrderTicket:
    """Return the order that changes a position by `delta`, which is not 0. `target` has a price."""
    side: Side = "buy" if delta > 0 else "sell"
    limit = None
    if execution.order_type == "limit":
        assert target.price is not None  # the caller found one
        better = EXACT.multiply(execution.limit_offset_bps, BPS) * (-1 if delta > 0 else 1)
        limit = rounded(EXACT.multiply(target.price, 1 + better))
    return OrderTicket(
        order_id,
        target.symbol,
        side,
        abs(delta),
        placed_at,
        execution.order_type,
        limit,
        execution.time_in_force,
    )
