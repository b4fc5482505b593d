"""Fees of simulated fills, and how the paper broker fills a world's orders.

All amounts are `Decimal`. Rates are in basis points (`bps`) of the notional of a fill.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Never, Self

from pydantic import Field, ValidationError, model_validator

from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, AMOUNT_PLACES, Amount, plain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import Symbol
from qmtl_sdk.contracts.model import Model

Rate = Annotated[Decimal, Field(ge=0, lt=10_000, max_digits=28, decimal_places=AMOUNT_PLACES)]
"""A rate in basis points."""

_Money = Annotated[Decimal, Field(ge=0, lt=AMOUNT_LIMIT, max_digits=28, decimal_places=AMOUNT_PLACES)]

VolumeShare = Annotated[Decimal, Field(gt=0, le=1, max_digits=28, decimal_places=AMOUNT_PLACES)]
"""The share of a bar's volume that an order gets at most."""


class CostModel(Model):
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


class PercentFee(CostModel):
    """A fee in proportion to the notional."""

    kind: Literal["percent"] = "percent"
    bps: Rate = Decimal(0)


class PerShareFee(CostModel):
    """A fee per unit, and at least `minimum` for an order that is filled at all."""

    kind: Literal["per_share"] = "per_share"
    per_share: _Money
    minimum: _Money = Decimal(0)


class MakerTakerFee(CostModel):
    """A fee for orders that waited for their price (maker; below 0: a rebate), and one for others (taker)."""

    kind: Literal["maker_taker"] = "maker_taker"
    maker_bps: Annotated[Decimal, Field(gt=-10_000, lt=10_000, max_digits=28, decimal_places=AMOUNT_PLACES)]
    taker_bps: Rate


class Tier(CostModel):
    """The rate from a traded notional on."""

    traded: _Money
    bps: Rate


class TieredFee(CostModel):
    """A rate that depends on the notional which the account has traded before the fill.

    `tiers` begin at 0 and ascend.
    """

    kind: Literal["tiered"] = "tiered"
    tiers: tuple[Tier, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _ascend(self) -> "TieredFee":
        bounds = [tier.traded for tier in self.tiers]
        if bounds[0] != 0 or bounds != sorted(set(bounds)):
            raise ValueError("tiers begin at a traded notional of 0 and ascend")
        return self


Fees = Annotated[PercentFee | PerShareFee | MakerTakerFee | TieredFee, Field(discriminator="kind")]


class PaperFills(Model):
    """How the paper broker fills orders of a world.

    `reference`: at once, in full, at the order's reference price, without costs. `next_open` and `next_mid`:
    from the world's bars, as they close.
    """

    fill: Literal["reference", "next_open", "next_mid"] = "reference"
    fees: Fees | None = Field(None, description="fees of paper fills, in place of `fee_bps`")
    volume_share: VolumeShare | None = Field(
        None, description="the share of a bar's volume that an order gets at most; none: all that it wants"
    )
    reject_symbols: tuple[Symbol, ...] = Field((), max_length=1000)
    max_quantity: Amount | None = Field(None, description="orders of more are rejected")

    @model_validator(mode="after")
    def _bars_for_what_needs_them(self) -> Self:
        needs = ("fees", "volume_share", "reject_symbols", "max_quantity")
        given = [name for name in needs if getattr(self, name) not in (None, ())]
        if given and self.fill == "reference":
            raise ValueError(
                f"{', '.join(given)} would change nothing; write `fill: next_open` or `next_mid`"
            )
        return self


def _plain(value: Any) -> Any:
    """Replace each Decimal by its shortest text. (Any: a dumped model.)"""
    if isinstance(value, Decimal):
        return format(plain(value), "f")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
