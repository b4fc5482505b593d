"""The models of a simulated venue: how an order is filled, and how it is sent. Fees: `contracts.fees`.

All amounts are `Decimal`. Rates are in basis points (`bps`) of the notional of a fill.
"""

from decimal import Context, Decimal
from typing import Annotated, Literal

from pydantic import Field, model_validator

from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, AMOUNT_PLACES, rounded
from qmtl_sdk.contracts.fees import CostModel, Fees, PercentFee, Rate, VolumeShare
from qmtl_sdk.contracts.instruments import TimeInForce

OrderType = Literal["market", "limit"]

CALCULATION = Context(prec=100)
"""The context of divisions, whose results are rounded. Sums and products are exact (`amounts.EXACT`)."""

PLACE = Decimal(1).scaleb(-AMOUNT_PLACES)
"""The smallest amount."""

BPS = Decimal(1).scaleb(-4)
"""One basis point, as a fraction."""


class FillModel(CostModel):
    """How a simulated venue fills orders from bars.

    A market order fills at the bar's `open` or `mid` (of high and low), worse by `slippage_bps`. An order
    gets at most `volume_share` of a bar's volume; None: all that it wants. A fill that is not the rest of its
    order is a multiple of `lot`. Orders of `reject_symbols`, or of more than `max_quantity`, are rejected.
    """

    price: Literal["open", "mid"] = "open"
    slippage_bps: Rate = Decimal(0)
    volume_share: VolumeShare | None = None
    lot: Annotated[Decimal, Field(ge=PLACE, lt=AMOUNT_LIMIT)] = PLACE
    fees: Fees = PercentFee()
    reject_symbols: tuple[str, ...] = ()
    max_quantity: Annotated[Decimal, Field(gt=0)] | None = None


class ExecutionModel(CostModel):
    """How a strategy's orders are sent, and how a simulated venue fills them.

    A limit order is placed `limit_offset_bps` better than the price at the decision; a market order has none.
    Only a backtest (`reports.backtest`) sends and fills orders by it. What the paper broker does follows from
    the world (`contracts.fees.PaperFills`).
    """

    order_type: OrderType = "market"
    time_in_force: TimeInForce = "GTC"
    limit_offset_bps: Rate = Decimal(0)
    fills: FillModel = FillModel()

    @model_validator(mode="after")
    def _only_limits_have_an_offset(self) -> "ExecutionModel":
        if self.order_type == "market" and self.limit_offset_bps:
            raise ValueError("limit_offset_bps is given for market orders; it needs order_type='limit'")
        return self


def as_decimal(value: float) -> Decimal:
    """Convert a number of a bar or row to Decimal: its shortest text, rounded to twelve places."""
    return rounded(Decimal(repr(float(value))))
