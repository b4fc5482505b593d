"""Orders as text: rows of a table, and lines of the same columns for a list that grows."""

from datetime import datetime

from api.cli.text.figures import number
from qmtl_sdk.contracts.orders import OrderRecord
from qmtl_sdk.contracts.refusals import REFUSALS

HEADER = (
    "no",
    "when (UTC)",
    "strategy",
    "domain",
    "origin",
    "symbol",
    "side",
    "quantity",
    "filled",
    "price",
    "state",
    "reason",
)
"""The columns of a list of orders. `origin` is empty for an order that its strategy decided; `price` is the
average of what was filled."""

# Of all columns but the last one, in characters. What is longer moves the rest of its line.
_WIDTHS = (8, 19, 24, 6, 11, 10, 4, 12, 12, 12, 16)


def order_row(item: OrderRecord, name: str, at: datetime | None = None) -> list[str]:
    """Return the cells of an order. `at`: the time to show; None: that of its verdict."""
    fill = item.fill
    return [
        str(item.seq),
        f"{at or item.at:%Y-%m-%d %H:%M:%S}",
        name,
        item.order.execution_domain.value,
        "" if item.order.origin == "strategy" else item.order.origin,
        item.order.symbol,
        item.order.side,
        f"{item.order.quantity:f}",
        f"{fill.quantity:f}" if fill else "",
        number(fill.price) if fill else "",
        item.state.value.replace("_", " "),
        order_reason(item),
    ]


def order_reason(item: OrderRecord) -> str:
    """Return why an order was withheld or refused, or what was said of its last change."""
    if item.withheld:
        return item.withheld
    if item.reason:
        return REFUSALS[item.reason]
    return item.changes[-1].reason if item.changes else ""


def change_line(item: OrderRecord, name: str) -> str:
    """Return the line of an order with the time of its last change."""
    return columns(order_row(item, name, item.changes[-1].at if item.changes else None))


def columns(cells: list[str]) -> str:
    """Return cells as one line, in columns of fixed widths."""
    *first, last = cells
    padded = [cell.ljust(width) for cell, width in zip(first, _WIDTHS, strict=True)]
    return "  ".join([*padded, last]).rstrip()
