"""Orders at the fence: what a publisher sends, and what the fence says of it. Quantities and prices are `Decimal`, sent as text."""

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime, WorldId

Amount = Annotated[Decimal, Field(gt=0, max_digits=28, decimal_places=12)]


class Refusal(StrEnum):
    """Why the fence, or the gate before it, keeps an order back. The word is stable: it is counted and stored."""

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
    Refusal.DRAINING: "an apply waits for open orders to end",
    Refusal.STALE_EPOCH: "the order was made under an earlier activation of the world",
    Refusal.STALE_DECISION: "the world's newest decision is older than its ttl",
    Refusal.NO_SESSION: "the session that sent it has ended, or is another strategy's",
    Refusal.NOT_ACTIVE: "the strategy is not active in the world",
    Refusal.WRONG_DOMAIN: "the strategy's stage is another than the order's domain",
    Refusal.LIVE_NOT_ALLOWED: "the world does not allow live",
    Refusal.EDGE_CLOSED: "the world's edge from backtest to live is closed",
    Refusal.CIRCUIT_BREAKER: "the world's circuit breaker has tripped; qmtl world resume closes it again",
}


class Order(Model):
    """`order_id` is the publisher's own: sent again it gets the same answer. `epoch` is that of the activation under which it was decided."""

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
        None, description="the price that the decision saw; the paper venue fills at it"
    )
    time_in_force: Literal["GTC", "DAY", "IOC", "FOK"] = "GTC"
    reduce_only: bool = False
    decided_at: UtcTime | None = Field(
        None, description="the close of the bar that it was decided at, world time"
    )


class OrderBatch(Model):
    orders: tuple[Order, ...] = Field(min_length=1, max_length=1000)


class OrderVerdict(Model):
    """What the fence said. `epoch` is the world's at that moment."""

    order_id: str
    accepted: bool
    reason: Refusal | None = None
    epoch: int


class OrderVerdicts(Model):
    verdicts: tuple[OrderVerdict, ...]


class Fill(Model):
    """An order that a venue has filled, in full. `price` None: the venue knew none."""

    order_id: str
    quantity: Amount
    price: Amount | None = None
    venue: str


class OrderRecord(Model):
    """An order as the log has it."""

    seq: int
    at: UtcTime
    order: Order
    accepted: bool
    reason: Refusal | None = None
    state: Literal["open", "filled", "cancelled", "refused"]
    fill: Fill | None = None


def order_id(world_id: str, strategy_id: str, node_id: str, bar: int, symbol: str, domain: str) -> str:
    """The client order id of what a node decided at a bar (its opening time, ns): the same whenever it is sent again."""
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
