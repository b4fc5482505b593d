"""The models of a simulated venue: what an order costs, how it is filled, how it is sent.

All amounts are `Decimal`. Rates are in basis points (`bps`) of the notional of a fill.
"""

from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Annotated, Any, Literal, Never

from pydantic import Field, ValidationError, model_validator

from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, AMOUNT_PLACES, plain, rounded
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import TimeInForce
from qmtl_sdk.contracts.model import Model

OrderType = Literal["market", "limit"]

CALCULATION = Context(prec=100)
"""The context of divisions, whose results are rounded. Sums and products are exact (`amounts.EXACT`)."""

PLACE = Decimal(1).scaleb(-AMOUNT_PLACES)
"""The smallest amount."""

BPS = Decimal(1).scaleb(-4)
"""One basis point, as a fraction."""

_Rate = Annotated[Decimal, Field(ge=0, lt=10_000)]
_Money = Annotated[Decimal, Field(ge=0, lt=AMOUNT_LIMIT)]


class _CostModel(Model):
    """A model that its author constructs. Raises QmtlError: E_EXECUTION, with the field that is wrong."""

    def __init__(self, *unnamed: Never, **values: Any) -> None:  # Any: Pydantic checks them
        label = type(self).__name__
        if unnamed:
            names = [f"{name}=" for name in type(self).model_fields if name != "kind"]
            raise QmtlError(
                "E_EXECUTION",
                f"{label}: the value {unnamed[0]!r} has no name",
                f"name it: {', '.join(names)}",
            )
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            fault = f"{field}: {first['msg']}" if field else first["msg"].removeprefix("Value error, ")
            raise QmtlError("E_EXECUTION", f"{label}: {fault}", "correct the value") from error

    def params(self) -> dict[str, Any]:
        """Return the model as parameters of a node: equal models are equal, however they are written."""
        found: dict[str, Any] = _plain(self.model_dump())
        return found


class PercentFee(_CostModel):
    """A fee in proportion to the notional."""

    kind: Literal["percent"] = "percent"
    bps: _Rate = Decimal(0)


class PerShareFee(_CostModel):
    """A fee per unit, and at least `minimum` for an order that is filled at all."""

    kind: Literal["per_share"] = "per_share"
    per_share: _Money
    minimum: _Money = Decimal(0)


class MakerTakerFee(_CostModel):
    """A fee for orders that waited for their price (maker; below 0: a rebate), and one for others (taker)."""

    kind: Literal["maker_taker"] = "maker_taker"
    maker_bps: Annotated[Decimal, Field(gt=-10_000, lt=10_000)]
    taker_bps: _Rate


class Tier(_CostModel):
    """The rate from a traded notional on."""

    traded: _Money
    bps: _Rate


class TieredFee(_CostModel):
    """A rate that depends on the notional which the account has traded before the fill.

    `tiers` begin at 0 and ascend.
    """

    kind: Literal["tiered"] = "tiered"
    tiers: tuple[Tier, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ascend(self) -> "TieredFee":
        bounds = [tier.traded for tier in self.tiers]
        if bounds[0] != 0 or bounds != sorted(set(bounds)):
            raise ValueError("tiers begin at a traded notional of 0 and ascend")
        return self


Fees = Annotated[PercentFee | PerShareFee | MakerTakerFee | TieredFee, Field(discriminator="kind")]


class FillModel(_CostModel):
    """How a simulated venue fills orders from bars.

    A market order fills at the bar's `open` or `mid` (of high and low), worse by `slippage_bps`. An order
    gets at most `volume_share` of a bar's volume; None: all that it wants. A fill that is not the rest of its
    order is a multiple of `lot`. Orders of `reject_symbols`, or of more than `max_quantity`, are rejected.
    """

    price: Literal["open", "mid"] = "open"
    slippage_bps: _Rate = Decimal(0)
    volume_share: Annotated[Decimal, Field(gt=0, le=1)] | None = None
    lot: Annotated[Decimal, Field(ge=PLACE, lt=AMOUNT_LIMIT)] = PLACE
    fees: Fees = PercentFee()
    reject_symbols: tuple[str, ...] = ()
    max_quantity: Annotated[Decimal, Field(gt=0)] | None = None


class ExecutionModel(_CostModel):
    """How a strategy's orders are sent, and how a simulated venue fills them.

    A limit order is placed `limit_offset_bps` better than the price at the decision; a market order has none.
    Only a backtest (`reports.backtest`) sends and fills orders by it: no order of a running strategy follows
    from targets yet.
    """

    order_type: OrderType = "market"
    time_in_force: TimeInForce = "GTC"
    limit_offset_bps: _Rate = Decimal(0)
    fills: FillModel = FillModel()

    @model_validator(mode="after")
    def _only_limits_have_an_offset(self) -> "ExecutionModel":
        if self.order_type == "market" and self.limit_offset_bps:
            raise ValueError("limit_offset_bps is given for market orders; it needs order_type='limit'")
        return self


def as_decimal(value: float) -> Decimal:
    """Convert a number of a bar or row to Decimal: its shortest text, rounded to twelve places."""
    return rounded(Decimal(repr(float(value))))


def _plain(value: Any) -> Any:
    """Replace each Decimal by its shortest text. (Any: a dumped model.)"""
    if isinstance(value, Decimal):
        return format(plain(value), "f")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
