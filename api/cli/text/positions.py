"""What strategies hold and have earned, as text."""

from fractions import Fraction
from typing import Any

from api.cli.names import StrategyNames
from api.cli.output import table
from api.cli.text.figures import number
from qmtl_sdk.contracts.amounts import EXACT
from qmtl_sdk.contracts.capital import Capital
from qmtl_sdk.contracts.ledger import HeldPosition
from qmtl_sdk.contracts.position_summary import PositionSummary, PositionSums

_SUMS = ["strategy", "account", "positions", "gross", "net", "cash", "profit", "today"]
_POSITIONS = ["strategy", "account", "symbol", "quantity", "average", "mark", "value"]


def capital_text(capital: Capital | None, scale: Fraction, summary: PositionSummary) -> list[str]:
    """Describe a world's capital, and the exposure of each account as a share of it.

    `scale`: what rebalancings have made of it. The share is of what the world trades with now.
    """
    if capital is None:
        return []
    now = Fraction(capital.amount) * scale
    scaled = f", by rebalancings {float(now):.2f} now" if scale != 1 else ""
    shares = [
        f"{float(Fraction(each.gross) / now):.1%} of it at {each.account}" for each in summary.accounts if now
    ]
    exposed = f"; gross exposure {', '.join(shares)}" if shares else ""
    return [f"capital    {number(capital.amount)} {capital.currency}{scaled}{exposed}"]


def holdings_text(summary: PositionSummary, names: StrategyNames) -> list[Any]:
    """Tabulate the sums of strategies and accounts, and the largest positions. (Any: rich tables.)"""
    if not summary.strategies:
        return ["positions  none yet", *_unreadable_text(summary)]
    rows = [[names[each.strategy_id], each.account, *_sums(each)] for each in summary.strategies]
    rows += [["all", each.account, *_sums(each)] for each in summary.accounts]
    title = f"exposure at the ledger's marks; today: since {summary.midnight:%Y-%m-%d %H:%M} UTC"
    lines: list[Any] = [table(_SUMS, rows, title)]
    largest = [item for each in summary.strategies for item in each.largest]
    if largest:
        lines.append(table(_POSITIONS, [_position(item, names[item.strategy_id]) for item in largest]))
    more = sum(each.positions for each in summary.accounts) - len(largest)
    if more:
        lines.append(f"and {more} more: qmtl world positions {summary.world_id} lists all")
    return [*lines, *_unreadable_text(summary)]


def _unreadable_text(summary: PositionSummary) -> list[str]:
    if not summary.unreadable:
        return []
    check = f"qmtl ledger verify {summary.world_id}"
    return [f"{summary.unreadable} positions can't be read and are left out of these sums: {check}"]


def _sums(each: PositionSums) -> list[str]:
    amounts = (each.gross, each.net, each.cash, each.profit, each.profit_today)
    return [str(each.positions), *map(number, amounts)]


def _position(item: HeldPosition, name: str) -> list[str]:
    held = item.position
    value = EXACT.multiply(held.quantity, held.mark)
    return [name, item.account, item.symbol, *map(number, (held.quantity, item.average, held.mark, value))]
