"""What closes a position, as a pure function of the position and of its open orders.

Every open order may still fill, also one whose cancellation is requested. So what the open orders that reduce
a position may take away is left to them: the position and all of these orders together never cross zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, AMOUNT_PLACES, EXACT, ZERO, exact_sum, negated

# The largest quantity of one order. What is beyond it is ordered when that order has ended.
_LARGEST = EXACT.subtract(Decimal(AMOUNT_LIMIT), Decimal(1).scaleb(-AMOUNT_PLACES))


class OpenQuantity(NamedTuple):
    """What may still be filled of an order (positive buys). `flattens`: the order is of a flatten."""

    order_id: str
    left: Decimal
    flattens: bool


@dataclass(frozen=True)
class Reduction:
    """What is to be ordered (positive buys; 0: nothing), and which orders of flattens are too much."""

    quantity: Decimal
    surplus: tuple[str, ...] = ()


def reduction(held: Decimal, orders: Iterable[OpenQuantity]) -> Reduction:
    """Return what closes a position of `held` units with these open orders.

    Orders of flattens are too much where they would not reduce the position, or where all that reduce it are
    of more than it: it has changed since they were made, as by a fill that came late.
    """
    reducing, other = list[OpenQuantity](), list[OpenQuantity]()
    for order in orders:
        (reducing if held and (order.left > 0) is (held < 0) else other).append(order)
    taken = exact_sum(order.left.copy_abs() for order in reducing)
    wrong = [order for order in other if order.flattens]
    if taken > held.copy_abs():
        wrong += [order for order in reducing if order.flattens]
    missing = min(max(EXACT.subtract(held.copy_abs(), taken), ZERO), _LARGEST)
    return Reduction(missing if held < 0 else negated(missing), tuple(order.order_id for order in wrong))
