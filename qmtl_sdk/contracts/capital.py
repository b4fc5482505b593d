"""The capital of a world."""

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, Field

from qmtl_sdk.contracts.amounts import Amount, plain
from qmtl_sdk.contracts.model import Model

DEFAULT_LOT = Decimal("0.000001")
"""The step of quantities where a world's instruments name none."""


class Capital(Model):
    """The capital of a world, in the currency of its accounts. A strategy trades with its weight of it."""

    amount: Amount
    currency: Annotated[str, Field(pattern=r"^[A-Z0-9]{3,8}$")] = "USD"


_NotNegative = Annotated[Decimal, Field(ge=0), AfterValidator(plain)]


class StrategyCapital(Model):
    """What a strategy trades with, as the service says; nothing here can be set.

    `world_share`: the share of the whole capital that its world has, None where none was ever set. `weight`:
    the strategy's part of its world's capital: its decision's weight, as rebalancings have scaled it; 0
    where it has no activation. `amount`: that part in `currency`; None where the world has no capital.
    """

    world_share: _NotNegative | None = None
    weight: _NotNegative = Decimal(0)
    amount: _NotNegative | None = None
    currency: str = ""

    @property
    def text(self) -> str:
        """What it trades with: `2500 USD, its weight 0.5 of the world's capital; the world's share is …`."""
        amount = f"{self.amount:f} {self.currency}, " if self.amount is not None else ""
        whole = f"; the world's share is {self.world_share:f}" if self.world_share is not None else ""
        return f"{amount}its weight {self.weight:f} of the world's capital{whole}"
