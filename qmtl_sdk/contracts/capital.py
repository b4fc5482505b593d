"""The capital of a world."""

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from qmtl_sdk.contracts.amounts import Amount
from qmtl_sdk.contracts.model import Model

DEFAULT_LOT = Decimal("0.000001")
"""The step of quantities where a world's instruments name none."""


class Capital(Model):
    """The capital of a world, in the currency of its accounts. Each strategy trades its weight's share."""

    amount: Amount
    currency: Annotated[str, Field(pattern=r"^[A-Z0-9]{3,8}$")] = "USD"
