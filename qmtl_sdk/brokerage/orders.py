"""Orders at a simulated venue: what was ordered, each fill of it, and how far it is."""

from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum

from qmtl_sdk.brokerage.models import OrderType
from qmtl_sdk.contracts.amounts import EXACT
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Side
from qmtl_sdk.contracts.instruments import TimeInForce


@dataclass(frozen=True, slots=True)
class OrderTicket:
    """An order as its venue gets it.

    `placed_at` (ns, UTC): only bars that open then or later can fill it. Raises QmtlError: E_EXECUTION for
    one without a symbol or a positive quantity, and for a limit order without a positive limit.
    """

    order_id: str
    symbol: str
    side: Side
    quantity: Decimal
    placed_at: int
    order_type: OrderType = "market"
    limit_price: Decimal | None = None
    time_in_force: TimeInForce = "GTC"

    def __post_init__(self) -> None:
        if not self.symbol:
            raise QmtlError("E_EXECUTION", f"order {self.order_id} has no symbol", "name the instrument")
        if not self.quantity > 0:
            raise QmtlError(
                "E_EXECUTION",
                f"order {self.order_id} has a quantity of {self.quantity}",
                "give it a positive quantity; the side says whether it buys or sells",
            )
        limited = self.order_type == "limit"
        if limited != (self.limit_price is not None and self.limit_price > 0):
            raise QmtlError(
                "E_EXECUTION",
                f"{self.order_type} order {self.order_id} has a limit price of {self.limit_price}",
                "give limit orders a positive limit_price, and market orders none",
            )

    @property
    def sign(self) -> int:
        """1 for a purchase, -1 for a sale."""
        return 1 if self.side == "buy" else -1


@dataclass(frozen=True, slots=True)
class SimulatedFill:
    """One fill of an order: `quantity` at `price`, for `fee`, in the bar that opens at `at` (ns, UTC).

    `maker`: the order waited for its price.
    """

    fill_id: str
    symbol: str
    side: Side
    quantity: Decimal
    price: Decimal
    at: int
    maker: bool = False
    fee: Decimal = Decimal(0)

    @property
    def notional(self) -> Decimal:
        """Quantity times price, exact."""
        return EXACT.multiply(self.quantity, self.price)

    @property
    def signed(self) -> Decimal:
        """The change of the position."""
        return self.quantity if self.side == "buy" else -self.quantity


class WorkingState(StrEnum):
    """How far an order is at a simulated venue."""

    OPEN = "open"
    FILLED = "filled"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class WorkingOrder:
    """An order at a simulated venue, with its fills, oldest first.

    `day`: the UTC day (number since 1970) of the first bar that it met; None before.
    """

    ticket: OrderTicket
    fills: tuple[SimulatedFill, ...] = ()
    state: WorkingState = WorkingState.OPEN
    day: int | None = None
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it can still be filled."""
        return self.state is WorkingState.OPEN

    @property
    def filled(self) -> Decimal:
        """The quantity that is filled."""
        return sum((item.quantity for item in self.fills), Decimal(0))

    @property
    def remaining(self) -> Decimal:
        """The quantity that can still be filled; 0 once it has ended."""
        return self.ticket.quantity - self.filled if self.is_open else Decimal(0)

    def ended(self, state: WorkingState, reason: str = "") -> "WorkingOrder":
        """Return the order in its last state."""
        return replace(self, state=state, reason=reason)
