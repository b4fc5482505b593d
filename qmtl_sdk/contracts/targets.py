"""Targets: what a strategy wants to hold of a symbol. The service orders what its position lacks."""

from decimal import Decimal
from typing import Literal, Self

from pydantic import Field, model_validator

from qmtl_sdk.contracts.amounts import ZERO, SignedAmount
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.orders import MAX_ORDERS, OrderRequest, OrderVerdict, check_one_session
from qmtl_sdk.contracts.worlds import UtcTime

MAX_TARGETS = 1000
"""Symbols for which one strategy may have targets in a domain of a world."""

TargetUnit = Literal["weight", "notional", "units"]
"""What a target is: a part of the strategy's capital (-1…1), an amount of money, or a position."""


class Target(OrderRequest):
    """What a strategy wants to hold of a symbol; negative: short.

    `value` is what it would hold at a weight of 1 in its world: the service multiplies it by the strategy's
    weight, a `weight` also by the world's capital. `order_id` names the order that may follow from it.
    """

    unit: TargetUnit
    value: SignedAmount
    decided_at: UtcTime

    @model_validator(mode="after")
    def _is_a_part(self) -> Self:
        if self.unit == "weight" and abs(self.value) > 1:
            raise ValueError("a target weight is between -1 and 1")
        return self


class TargetBatch(Model):
    """`POST /targets`: targets of one session in one request, one for each symbol."""

    targets: tuple[Target, ...] = Field(min_length=1, max_length=MAX_ORDERS)

    @model_validator(mode="after")
    def _is_of_one_session(self) -> Self:
        check_one_session(self.targets)
        if len({(target.execution_domain, target.symbol) for target in self.targets}) < len(self.targets):
            raise ValueError("a request has one target for each symbol and domain")
        return self


class TargetVerdict(OrderVerdict):
    """The fence's answer to a target.

    `ordered` is what was ordered for it (positive buys); 0 where nothing is missing, or where it was refused.
    """

    ordered: Decimal = ZERO


class TargetVerdicts(Model):
    """The fence's answers to a batch, in its order."""

    verdicts: tuple[TargetVerdict, ...]
