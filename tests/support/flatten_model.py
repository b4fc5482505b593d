"""What orders of flattens may do, from the order log alone: only reduce a position, and never cross zero.

It knows nothing of the fence's code. It adds up fills, so a world with bookings is none for it.
"""

import json
from collections import defaultdict
from decimal import Decimal
from typing import Any, NamedTuple

from qmtl_sdk.contracts.amounts import exact_sum

HAS_FILLS = {"fill", "partially_filled", "filled", "cancelled", "rejected", "expired"}
ENDS = {"filled", "cancelled", "rejected", "expired"}


class Place(NamedTuple):
    """Where a position is held."""

    strategy: str
    domain: str
    symbol: str


class Known(NamedTuple):
    """An accepted order. `sign`: 1 buys, -1 sells."""

    place: Place
    sign: int
    flattens: bool


def flatten_violations(log: Any) -> list[str]:
    """Orders of flattens that were of more than they may close, or that crossed zero. (Any: rows.)"""
    broken = list[str]()
    known = dict[str, Known]()
    left = dict[str, Decimal]()
    held = defaultdict[Place, Decimal](Decimal)
    for row in log:
        kind, ref = row["kind"], row["ref"]
        if kind == "accepted":
            order = json.loads(row["body"])
            place = Place(row["strategy_id"], order["execution_domain"], order["symbol"])
            sign = 1 if order["side"] == "buy" else -1
            flattens, quantity = order.get("origin") == "flatten", Decimal(order["quantity"])
            if flattens:
                against = [
                    amount
                    for other, amount in left.items()
                    if known[other].place == place and known[other].sign == sign
                ]
                closes = exact_sum([quantity, *against])
                if held[place] * sign >= 0 or closes > abs(held[place]) or not order["reduce_only"]:
                    broken.append(
                        f"{row['seq']}: order {ref} of a flatten makes {closes * sign} open orders of "
                        f"{held[place]} that is held"
                    )
            known[ref], left[ref] = Known(place, sign, flattens), quantity
        elif kind in HAS_FILLS and ref in known:
            place, sign, flattens = known[ref]
            fills = json.loads(row["body"])["fills"] if row["body"] else []
            filled = exact_sum(Decimal(fill["quantity"]) for fill in fills)
            before, held[place] = held[place], held[place] + filled * sign
            if ref in left:  # one that has ended may be filled late
                left[ref] -= filled
            if flattens and filled and (before * sign >= 0 or before * held[place] < 0):
                broken.append(f"{row['seq']}: order {ref} of a flatten crossed zero")
        if kind in ENDS:
            left.pop(ref, None)
    return broken
