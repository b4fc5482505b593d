"""Lists of orders: which ones are listed, and those that have changed since an earlier answer."""

from typing import Literal

from pydantic import Field, model_validator

from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.orders import OrderRecord
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.worlds import WorldId


class OrderSelection(Model):
    """Which orders of a world are meant: all, or those of one strategy, and those that were never accepted.

    `state`: refused by the fence, or withheld by their strategy. `reason`: refused for it, or `withheld`.
    """

    strategy_id: str = Field("", max_length=128)
    state: tuple[Literal["refused", "withheld"], ...] = Field((), max_length=2)
    reason: Refusal | None = None

    @model_validator(mode="after")
    def _names_state_or_reason(self) -> "OrderSelection":
        if self.state and self.reason is not None:
            raise ValueError("name a state or a reason: orders of one reason have one state")
        return self

    @property
    def reasons(self) -> frozenset[Refusal] | None:
        """The reasons that orders which were never accepted may have; None: accepted ones are meant too."""
        if self.reason is not None:
            return frozenset({self.reason})
        if not self.state:
            return None
        withheld = {Refusal.WITHHELD}
        found = withheld if "withheld" in self.state else set[Refusal]()
        return frozenset(found | (set(Refusal) - withheld if "refused" in self.state else set()))

    def takes(self, record: OrderRecord) -> bool:
        """Return whether an order is meant."""
        if self.strategy_id and record.order.strategy_id != self.strategy_id:
            return False
        return self.reasons is None or record.reason in self.reasons


class OrderFilter(OrderSelection):
    """A list of orders, oldest first: the first `limit` after a number of the order log, or the newest."""

    after: int = Field(0, ge=0, lt=2**62)
    newest: bool = False
    limit: int = Field(100, ge=1, le=1000)


class OrdersOfWorld(OrderFilter):
    """`GET /orders`: the parameters after the path."""

    world_id: WorldId


class ChangesOfWorld(OrderSelection):
    """`GET /orders/changes`: the parameters after the path. Without `after` no order is listed."""

    world_id: WorldId
    after: int | None = Field(None, ge=0, lt=2**62)


class OrderChanges(Model):
    """Orders that are new or have changed after a number of the order log, each once and as it is now.

    `after` is the number for the next request. It grows with every row of the world, so that a reader who
    goes on from it misses no change. `more`: there are more changes already.
    """

    orders: tuple[OrderRecord, ...] = ()
    after: int
    more: bool = False
