"""Quantities, prices and money, as `Decimal`, and arithmetic that neither rounds nor overflows unasked."""

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Annotated

from pydantic import Field

AMOUNT_PLACES = 12
"""Decimal places of a quantity or price."""

AMOUNT_LIMIT = 10**16
"""Quantities and prices are below it: 16 digits and the places make the 28 that are stored."""

Amount = Annotated[Decimal, Field(gt=0, lt=AMOUNT_LIMIT, max_digits=28, decimal_places=AMOUNT_PLACES)]
"""A positive quantity or price."""

Change = Annotated[
    Decimal, Field(gt=-AMOUNT_LIMIT, lt=AMOUNT_LIMIT, max_digits=28, decimal_places=AMOUNT_PLACES)
]
"""A change of a quantity or of money, or a fee: negative for what is given away."""

ZERO = Decimal(0)

exact = Context(prec=200, rounding=ROUND_HALF_EVEN)
"""Products and sums of amounts are exact in it. Decimal's own context has 28 digits, and would round them."""

_UNIT = Decimal(1).scaleb(-AMOUNT_PLACES)


def total(values: Iterable[Decimal]) -> Decimal:
    """Return the exact sum."""
    found = ZERO
    for value in values:
        found = exact.add(found, value)
    return found


def negated(value: Decimal) -> Decimal:
    """Return the same number with the other sign. `-value` would round it to 28 digits."""
    return value.copy_negate() if value else ZERO


def rounded(value: Decimal) -> Decimal:
    """Round to the places of an amount, half to even, without trailing zeros."""
    return plain(exact.quantize(value, _UNIT))


def plain(value: Decimal) -> Decimal:
    """Return the same number without trailing zeros and without an exponent."""
    found = exact.normalize(value)
    return exact.quantize(found, Decimal(1)) if found.as_tuple().exponent > 0 else found  # type: ignore[operator]
