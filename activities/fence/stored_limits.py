"""Limits of a world's positions, as its fence row keeps them."""

import json
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from qmtl_sdk.contracts.position_limits import PositionLimits, TotalLimits
from qmtl_sdk.contracts.worlds import OrderLimits


def limits_text(limits: OrderLimits) -> str:
    """Return what the fence row keeps of limits on positions; empty where there are none."""
    given = {
        name: found.model_dump(mode="json", exclude_none=True)
        for name, found in (("strategy", limits.strategy), ("world", limits.world))
    }
    given["prices"] = {symbol: str(price) for symbol, price in limits.prices.items()}
    return json.dumps(given) if any(given.values()) else ""


class StoredLimits(NamedTuple):
    """The limits that a fence row keeps as text. `prices`: of symbols that nobody has traded."""

    strategy: PositionLimits
    world: TotalLimits
    prices: Mapping[str, Decimal]

    @property
    def of_value(self) -> bool:
        """Whether one of them values positions."""
        most = (self.strategy.max_position_notional, self.strategy.max_gross_notional)
        return any(limit is not None for limit in (*most, self.world.max_gross_notional))


@lru_cache(maxsize=256)
def stored_limits(text: str) -> StoredLimits:
    """Read what a fence row keeps."""
    found = json.loads(text) if text else {}
    return StoredLimits(
        PositionLimits.model_validate(found.get("strategy", {})),
        TotalLimits.model_validate(found.get("world", {})),
        {symbol: Decimal(price) for symbol, price in found.get("prices", {}).items()},
    )
