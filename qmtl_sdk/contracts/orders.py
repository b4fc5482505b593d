"""Orders: what a publisher sends, and the fence's answers.

Quantities and prices are `Decimal`, sent as text.
"""

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime, WorldId

AMOUNT_PLACES = 12
"""Decimal places of a quantity or price."""

AMOUNT_LIMIT = 10**16
"""Quantities and prices are below it: 16 digits and the places make the 28 that are stored."""

Amount = Annotated[Decimal, Field(gt=0, max_digits=28, decimal_places=AMOUNT_PLACES)]
"""A positive quantity or price."""


class Refusal(StrEnum):
    """Why the fence, or the order gate before it, refuses an order.

    The values are stable: they are counted and stored.
    """

    SHADOW = "shadow"
    HALTED = "halted"
    FROZEN = "frozen"
    DRAINING = "draining"
    STALE_EPOCH = "stale_epoch"
    STALE_DECISION = "stale_decision"
    NO_SESSION = "no_session"
    NOT_ACTIVE = "not_active"
    WRONG_DOMAIN = "wrong_domain"
    LIVE_NOT_ALLOWED = "live_not_allowed"
    EDGE_CLOSED = "edge_closed"
    CIRCUIT_BREAKER = "circuit_breaker"


REFUSALS: dict[Refusal, str] = {
    Refusal.SHADOW: "shadow computes beside a world and never trades",
    Refusal.HALTED: "an operator has halted the world; qmtl world resume lifts it",
    Refusal.FROZEN: "an apply has frozen the world",
    Refusal.DRAINING: "an apply is waiting for open orders to end",
    Refusal.STALE_EPOCH: "the order was decided under an earlier activation of the world",
    Refusal.STALE_DECISION: "the world's newest decision is older than its ttl",
    Refusal.NO_SESSION: "the session that sent it has ended, or belongs to another strategy",
    Refusal.NOT_ACTIVE: "the strategy is not active in the world",
    Refusal.WRONG_DOMAIN: "the strategy's stage differs from the order's domain",
    Refusal.LIVE_NOT_ALLOWED: "the world does not allow live",
    Refusal.EDGE_CLOSED: "the world's edge from backtest to live is closed",
    Refusal.CIRCUIT_BREAKER: "the world's circuit breaker has tripped; qmtl world resume resets it",
}
"""What each refusal means, for a person."""


class Order(Model):
    """An order.

    `order_id` is the publisher's: sent again, it gets the same answer. `epoch` is that of the activation
    under which the order was decided.
    """

    order_id: str = Field(min_length=8, max_length=128)
    world_id: WorldId
    strategy_id: str = Field(min_length=1, max_length=128)
    session_id: str = Field("", max_length=64)
    execution_domain: Domain
    epoch: int = Field(ge=0, lt=2**31)
    symbol: str = Field(min_length=1, max_length=64)
    side: Literal["buy", "sell"]
    quantity: Amount
    reference_price: Amount | None = Field(
        None, description="the price at the decision; the paper broker fills at it"
    )
    time_in_force: Literal["GTC", "DAY", "IOC", "FOK"] = "GTC"
    reduce_only: bool = False
    decided_at: UtcTime | None = Field(
        None, description="the close of the bar at which it was decided, world time"
    )


class OrderBatch(Model):
    """Several orders in one request."""

    orders: tuple[Order, ...] = Field(min_length=1, max_length=1000)


class OrderVerdict(Model):
    """The fence's answer to an order. `epoch` is the world's at that moment."""

    order_id: str
    accepted: bool
    reason: Refusal | None = None
    epoch: int


class OrderVerdicts(Model):
    """The fence's answers to a batch, in its order."""

    verdicts: tuple[OrderVerdict, ...]


class Fill(Model):
    """An order that a venue filled completely. `price` None: the venue knew no price."""

    order_id: str
    quantity: Amount
    price: Amount | None = None
    venue: str


class OrderRecord(Model):
    """An order in the order log."""

    seq: int
    at: UtcTime
    order: Order
    accepted: bool
    reason: Refusal | None = None
    state: Literal["open", "filled", "cancelled", "refused"]
    fill: Fill | None = None


def order_id(world_id: str, strategy_id: str, node_id: str, bar: int, symbol: str, domain: str) -> str:
    """Return the client order id of a node's decision at a bar (`bar`: its opening time, ns).

    The same decision always has the same id, so that it can be sent again safely.
    """
    return (
        "order:"
        + hash_of(
            {
                "world": world_id,
                "strategy": strategy_id,
                "node": node_id,
                "bar": bar,
                "symbol": symbol,
                "domain": domain,
            }
        ).removeprefix("blake3:")[:40]
    )
