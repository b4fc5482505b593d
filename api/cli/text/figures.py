"""Numbers as text."""

from decimal import Context, Decimal

from qmtl_sdk.contracts.amounts import plain

_PLACES = Decimal("0.000001")
# Of more digits than a quantity times a price has, which Python's own context would refuse to round.
_CONTEXT = Context(prec=400)


def money(value: Decimal) -> str:
    """Format an amount of money for a person: two places."""
    return f"{value:z.2f}"


def number(value: Decimal) -> str:
    """Format a number for a person: at most six places."""
    return f"{plain(value.quantize(_PLACES, context=_CONTEXT)):f}" if value else "0"
