"""Flatten: close what strategies hold. The request, and the answer of how far it is."""

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.texts import PlainLine, Report

FlattenId = Annotated[PlainLine, Field(min_length=8, max_length=128)]
"""The caller's name of a request to flatten, unique in its world."""


class FlattenEvery(Model):
    """`POST /flatten`: close what the strategies of every world hold. Idempotent by `flatten_id`."""

    flatten_id: FlattenId
    reason: Report = Field("", max_length=MAX_REASON)


class FlattenRequest(FlattenEvery):
    """`POST /worlds/{id}/flatten`: close what one strategy of the world holds, or what all of them do."""

    strategy: str | None = Field(
        None, min_length=1, max_length=128, description="its name, its strategy_id, or the beginning of that"
    )


class FlattenOrder(Model):
    """An order that a request has led to at once. `quantity` is signed: positive buys."""

    order_id: str
    strategy_id: str
    execution_domain: Domain
    symbol: str
    quantity: Decimal


class Unflattened(Model):
    """A position that is not closed yet, or an order that may still open one.

    `under_way`: it is being closed, and `waits_for` says what must happen first. Otherwise `waits_for` says
    why nobody closes it.
    """

    strategy_id: str
    account: str
    symbol: str
    quantity: Decimal
    under_way: bool
    waits_for: str


class FlattenResult(Model):
    """What a request to flatten did at first, and what remains now.

    `cancelled` orders had not been sent; of the `requested` ones a venue decides, which the router asks.
    `note` says what keeps the orders from being sent.
    """

    world_id: str
    flatten_id: str
    cancelled: int
    requested: int
    ordered: tuple[FlattenOrder, ...] = ()
    remains: tuple[Unflattened, ...] = ()
    note: str = ""

    @property
    def is_under_way(self) -> bool:
        """Whether something is still being closed."""
        return any(item.under_way for item in self.remains)


class FlattenResults(Model):
    """What a request to flatten did in each world. `failed` has why, by world, where it could not."""

    results: tuple[FlattenResult, ...]
    failed: dict[str, str] = {}
