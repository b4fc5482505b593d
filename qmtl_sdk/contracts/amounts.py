"""Quantities and prices of orders, as `Decimal`."""

from decimal import Decimal
from typing import Annotated

from pydantic import Field

AMOUNT_PLACES = 12
"""Decimal places of a quantity or price."""

AMOUNT_LIMIT = 10**16
"""Quantities and prices are below it: 16 digits and the places make the 28 that are stored."""

Amount = Annotated[Decimal, Field(gt=0, lt=AMOUNT_LIMIT, max_digits=28, decimal_places=AMOUNT_PLACES)]
"""A positive quantity or price."""
