"""The fee of a fill, by each fee model."""

from collections.abc import Sequence
from decimal import Decimal
from typing import assert_never

from qmtl_sdk.brokerage.models import BPS
from qmtl_sdk.brokerage.orders import SimulatedFill
from qmtl_sdk.contracts.amounts import EXACT, rounded
from qmtl_sdk.contracts.fees import Fees, MakerTakerFee, PercentFee, PerShareFee, TieredFee


def fee_of(fees: Fees, fill: SimulatedFill, earlier: Sequence[SimulatedFill], traded: Decimal) -> Decimal:
    """Return the fee of a fill, rounded to twelve places.

    `earlier`: the order's fills before it, which share a minimum with it. `traded`: the notional that the
    account had traded before it. A rebate is negative.
    """
    match fees:
        case PercentFee():
            rate = fees.bps
        case MakerTakerFee():
            rate = fees.maker_bps if fill.maker else fees.taker_bps
        case TieredFee():
            rate = next(tier.bps for tier in reversed(fees.tiers) if tier.traded <= traded)
        case PerShareFee():
            filled = sum((item.quantity for item in earlier), fill.quantity)
            whole = max(fees.minimum, EXACT.multiply(filled, fees.per_share))
            return rounded(whole - sum((item.fee for item in earlier), Decimal(0)))
        case _:
            assert_never(fees)
    return rounded(EXACT.multiply(fill.notional, EXACT.multiply(rate, BPS)))
