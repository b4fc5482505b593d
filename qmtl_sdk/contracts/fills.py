"""Fills: what a venue executed of an order, one execution each."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from qmtl_sdk.contracts.amounts import EXACT, ZERO, Amount, SignedAmount, exact_sum, quotient, rounded
from qmtl_sdk.contracts.instruments import Symbol
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime, WorldId

MAX_FILLS = 1000
"""Fills of one request, or of one report of a venue."""

Side = Literal["buy", "sell"]

FillId = Annotated[PlainLine, Field(min_length=1, max_length=128)]
"""The venue's id of a fill, unique among the fills of its account."""

Account = Annotated[PlainLine, Field(min_length=1, max_length=64)]
"""An account at a venue, which holds positions and cash."""


class Fill(Model):
    """One execution of an order at a venue.

    `account` holds what was bought. `fee` is what it cost, in the account's currency; a rebate is negative.
    `fee_units` is what it cost in units of the symbol, beside that: of a purchase of 1 with 0.001 the
    position grows by 0.999. `at` is the venue's time; None: the time at which the fill was recorded.
    """

    fill_id: FillId
    quantity: Amount
    price: Amount
    fee: SignedAmount = ZERO
    fee_units: SignedAmount = ZERO
    account: Account
    at: UtcTime | None = None

    @property
    def whole_fee(self) -> Decimal:
        """What it cost in all, in the account's currency: units at the price of the fill."""
        return EXACT.add(self.fee, rounded(EXACT.multiply(self.fee_units, self.price)))


class Filled(Model):
    """What was filled of an order in all. `price` is the average of its fills, weighted by quantity."""

    quantity: Decimal
    price: Decimal
    fee: Decimal
    account: str


class OrderFills(Model):
    """New fills of an order, as the order log keeps them."""

    symbol: Symbol
    side: Side
    fills: tuple[Fill, ...]


class ReportedFill(Model):
    """A fill that a person or a bridge to a venue reports, of an order that the fence accepted."""

    order_id: Annotated[PlainLine, Field(min_length=8, max_length=128)]
    fill: Fill


class FillBatch(Model):
    """`POST /fills`: fills of orders of one world. All are recorded, or none."""

    world_id: WorldId
    fills: tuple[ReportedFill, ...] = Field(min_length=1, max_length=MAX_FILLS)


class FillsRecorded(Model):
    """How many of the fills were new. One that was recorded before is not recorded again."""

    recorded: int


def filled_by(fills: Iterable[Fill]) -> Filled | None:
    """Add up the fills of one order; None where there are none."""
    found = list(fills)
    if not found:
        return None
    quantity = exact_sum(fill.quantity for fill in found)
    value = exact_sum(EXACT.multiply(fill.quantity, fill.price) for fill in found)
    return Filled(
        quantity=quantity,
        price=quotient(value, quantity),
        fee=exact_sum(fill.whole_fee for fill in found),
        account=found[-1].account,
    )
