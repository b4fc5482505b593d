"""Orders: what a publisher sends, the fence's answers, and what became of each order."""

from collections.abc import Iterable
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from qmtl_sdk.contracts.amounts import Amount, negated
from qmtl_sdk.contracts.canonical import hash_of, hash_parts
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import MAX_FILLS, Fill, Filled, Side
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime, WorldId

MAX_ORDERS = 1000
"""The largest number of orders, or of order ids, in one request."""

MAX_REASON = 300
"""The largest length of a reason that is stored with an order, a halt or the end of a session."""


OrderId = Annotated[PlainLine, Field(min_length=8, max_length=128)]
"""The id of an order."""


class OrderRequest(Model):
    """What a strategy asks of the fence: an order, or a target that the service makes an order of.

    `order_id` is the publisher's: sent again, it gets the same answer. It begins with `order_id_prefix`, so
    that no strategy can use up the ids of another. `epoch` is that of the activation under which it was
    decided.
    """

    order_id: OrderId
    world_id: WorldId
    strategy_id: PlainLine = Field(min_length=1, max_length=128)
    session_id: PlainLine = Field("", max_length=64)
    execution_domain: Domain
    epoch: int = Field(ge=0, lt=2**31)
    symbol: PlainLine = Field(min_length=1, max_length=64)
    reference_price: Amount | None = Field(
        None, description="the price at the decision; the paper broker fills at it"
    )
    decided_at: UtcTime | None = Field(
        None, description="the close of the bar at which it was decided, world time"
    )

    @model_validator(mode="after")
    def _has_the_prefix(self) -> Self:
        prefix = order_id_prefix(self.world_id, self.strategy_id)
        if not self.order_id.startswith(prefix):
            raise ValueError(f"the order_id of this strategy in this world begins with {prefix}")
        return self


Origin = Literal["strategy", "flatten", "rebalancing"]
"""Who decided an order: a running strategy, or the service for an operator."""


class Order(OrderRequest):
    """An order. `origin` is set by the service: a client sends orders of strategies only."""

    side: Side
    quantity: Amount
    time_in_force: Literal["GTC", "DAY", "IOC", "FOK"] = "GTC"
    reduce_only: bool = False
    origin: Origin = "strategy"

    @property
    def signed(self) -> Decimal:
        """The quantity, negative where it sells."""
        return self.quantity if self.side == "buy" else negated(self.quantity)

    @property
    def content(self) -> tuple[Any, ...]:
        """What is ordered. A second runner of the strategy decides the same, in its own session."""
        return (
            self.world_id,
            self.strategy_id,
            self.execution_domain,
            self.symbol,
            self.side,
            self.quantity,
            self.time_in_force,
            self.reduce_only,
        )


class OrderBatch(Model):
    """Several orders of one session in one request."""

    orders: tuple[Order, ...] = Field(min_length=1, max_length=MAX_ORDERS)

    @model_validator(mode="after")
    def _is_of_one_strategy(self) -> Self:
        check_one_session(self.orders)
        if any(order.origin != "strategy" for order in self.orders):
            raise ValueError("a client sends orders of the origin `strategy` only")
        return self


class WithheldOrder(Model):
    """An order that its strategy did not send, and why: its gate was closed, or the order was too old."""

    order: Order
    reason: PlainLine = Field(min_length=1, max_length=MAX_REASON)


class WithheldBatch(Model):
    """`POST /orders/withheld`: several withheld orders of one session."""

    orders: tuple[WithheldOrder, ...] = Field(min_length=1, max_length=MAX_ORDERS)

    @model_validator(mode="after")
    def _is_of_one_session(self) -> Self:
        check_one_session(item.order for item in self.orders)
        return self


class WithheldRecorded(Model):
    """How many of the withheld orders were new. An id that was sent or reported before keeps its answer."""

    recorded: int


class OrderVerdict(Model):
    """The fence's answer to an order. `epoch` is the world's at that moment."""

    order_id: str
    accepted: bool
    reason: Refusal | None = None
    epoch: int


class OrderVerdicts(Model):
    """The fence's answers to a batch, in its order."""

    verdicts: tuple[OrderVerdict, ...]


class OrderState(StrEnum):
    """The state of an order: each change is a row of the order log.

    accepted → sent → partially filled → filled; or cancelled, rejected by the venue, expired. A refused order
    was never accepted, a withheld one never sent to the fence.
    """

    REFUSED = "refused"
    WITHHELD = "withheld"
    ACCEPTED = "accepted"
    SENT = "sent"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    EXPIRED = "expired"


ENDED = frozenset({OrderState.FILLED, OrderState.CANCELLED, OrderState.REJECTED, OrderState.EXPIRED})
"""The states in which an accepted order ends."""


class OrderReport(Model):
    """What a venue says of an order: that it is open there (`sent`), partially filled, or how it ended.

    `fills` are those of the order that the venue knows; what was reported before may be left out.
    """

    order_id: str = Field(max_length=128)
    state: Literal["sent", "partially_filled", "filled", "cancelled", "rejected", "expired"]
    fills: tuple[Fill, ...] = Field((), max_length=MAX_FILLS)
    reason: str = Field("", max_length=MAX_REASON)


class OrderChange(Model):
    """A change of an order's state, as the order log has it."""

    at: UtcTime
    state: OrderState
    reason: str = ""


class OrderRecord(Model):
    """An order in the order log, with the changes of its state, oldest first."""

    seq: int
    at: UtcTime
    order: Order
    accepted: bool
    reason: Refusal | None = None
    state: OrderState
    fill: Filled | None = Field(None, description="what was filled of it in all")
    withheld: str = Field("", description="why the strategy did not send it")
    changes: tuple[OrderChange, ...] = ()


class CancelRequest(Model):
    """Which open orders of a world are cancelled: these, or all."""

    order_ids: tuple[OrderId, ...] = Field((), max_length=MAX_ORDERS)
    all: bool = False
    reason: PlainLine = Field("", max_length=MAX_REASON)

    @model_validator(mode="after")
    def _names_orders(self) -> "CancelRequest":
        if self.all == bool(self.order_ids):
            raise ValueError("name orders or set all, one of the two")
        return self


class CancelResult(Model):
    """What a request to cancel did.

    `cancelled` orders had not been sent. Of the `requested` ones a venue decides, which the router asks.
    """

    cancelled: int
    requested: int


def check_one_session(orders: Iterable[OrderRequest]) -> None:
    """Raise ValueError unless all orders are of one session in one world."""
    if len({(order.session_id, order.world_id) for order in orders}) > 1:
        raise ValueError("the orders of a request are of one session; send those of another session apart")


@lru_cache(maxsize=4096)
def order_id_prefix(world_id: str, strategy_id: str) -> str:
    """Return how every order id of a strategy in a world begins."""
    return f"order:{_digits(hash_parts(world_id, strategy_id), 12)}:"


def order_id(world_id: str, strategy_id: str, node_id: str, bar: int, symbol: str, domain: str) -> str:
    """Return the client order id of a node's decision at a bar (`bar`: its opening time, ns).

    The same decision always has the same id, so that it can be sent again safely.
    """
    decision = hash_of({"node": node_id, "bar": bar, "symbol": symbol, "domain": domain})
    return order_id_prefix(world_id, strategy_id) + _digits(decision, 32)


def _digits(digest: str, count: int) -> str:
    return digest.removeprefix("blake3:")[:count]
