"""Quantities, prices and sums of money, as `Decimal`, and arithmetic that does not round unasked."""

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow
from functools import reduce
from typing import Annotated

from pydantic import AfterValidator, Field

AMOUNT_PLACES = 12
"""Decimal places of a quantity or price."""

AMOUNT_LIMIT = 10**16
"""Quantities and prices are below it: 16 digits and the places make the 28 that are stored."""

EXACT = Context(prec=400, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
"""Arithmetic that raises where a result would be rounded."""

ZERO = Decimal(0)


def plain(value: Decimal) -> Decimal:
    """Return the same number without trailing zeros or a positive exponent, so that equal ones read alike."""
    return EXACT.add(value.normalize(EXACT), ZERO) if value else ZERO


def exact_sum(values: Iterable[Decimal]) -> Decimal:
    """Return the sum of numbers, not rounded."""
    return reduce(EXACT.add, values, ZERO)


_ROUNDED = Context(prec=400, rounding=ROUND_HALF_EVEN)
_UNIT = Decimal(1).scaleb(-AMOUNT_PLACES)


def negated(value: Decimal) -> Decimal:
    """Return the number with the other sign. `-value` would round it to 28 digits."""
    return value.copy_negate() if value else ZERO


def rounded(value: Decimal) -> Decimal:
    """Round a number to the places of an amount, half to even."""
    return plain(_ROUNDED.quantize(value, _UNIT))


def quotient(value: Decimal, divisor: Decimal) -> Decimal:
    """Divide, and round the result to the places of an amount, half to even."""
    return rounded(_ROUNDED.divide(value, divisor))


Amount = Annotated[
    Decimal, Field(gt=0, lt=AMOUNT_LIMIT, max_digits=28, decimal_places=AMOUNT_PLACES), AfterValidator(plain)
]
"""A positive quantity or price, written in one way: zeros at its end would count as no digits."""

SignedAmount = Annotated[
    Decimal,
    Field(gt=-AMOUNT_LIMIT, lt=AMOUNT_LIMIT, max_digits=28, decimal_places=AMOUNT_PLACES),
    AfterValidator(plain),
]
"""A position (negative: short) or a sum of money."""

Limit = Annotated[
    Decimal, Field(ge=0, lt=AMOUNT_LIMIT, max_digits=28, decimal_places=AMOUNT_PLACES), AfterValidator(plain)
]
"""A limit of money, which may be 0."""

FIGURE_PLACES = 24
"""Decimal places of a computed figure: those of a quantity times a price."""

FIGURE_LIMIT = 10**50
"""Figures are below it."""

Figure = Annotated[
    Decimal, Field(gt=-FIGURE_LIMIT, lt=FIGURE_LIMIT, max_digits=80, decimal_places=FIGURE_PLACES)
]
"""A computed figure: a product or a sum of quantities and prices."""
