"""A report of equity as text."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from api.cli.names import StrategyNames
from api.cli.output import table
from api.cli.text.figures import money
from qmtl_sdk.contracts.equity_report import BacktestFigures, EquityFigures, EquityReport

_EQUITY = ["strategy", "days", "capital", "profit", "earned", "return", "drawdown"]
_TRADING = ["strategy", "gross", "net", "turnover", "costs", "bps"]
_BACKTEST = ["strategy", "return", "sharpe", "drawdown", "of the days", "returns"]
_UNBROKEN = (*_EQUITY[1:], "turnover", "costs", "bps", "sharpe", "returns")


def report_text(report: EquityReport, names: StrategyNames, strategy: str) -> list[Any]:
    """Tabulate a report: equity; exposure, turnover and costs; backtests. (Any: rich tables.)

    Each table fits into 80 columns.
    """
    if not report.strategies:
        who = f"{strategy} in {report.world_id}" if strategy else report.world_id
        return [f"{who} has no fills yet: there is no equity to report"]
    named = [(names[each.strategy_id], each) for each in report.strategies]
    rows = [(f"{name} ({each.account})", each) for name, each in named]
    rows += [(f"all ({each.account})", each) for each in report.accounts]
    days = f"{report.first} to {report.last} (UTC)"
    currency = f", in {report.currency}" if report.currency else ""
    equity = f"equity by the ledger, {days}{currency}; profit: in all, earned: in these days"
    trading = f"exposure now, with its share of the capital; turnover and costs of {days}"
    measured = {name: each.backtest for name, each in named}  # a strategy may trade at several accounts
    backtests = [[name, *_backtest(found)] for name, found in measured.items()]
    lines: list[Any] = [
        table(_EQUITY, [[name, *_equity(each)] for name, each in rows], equity, _UNBROKEN),
        table(_TRADING, [[name, *_trading(each)] for name, each in rows], trading, _UNBROKEN),
        table(_BACKTEST, backtests, "backtests, over all their days: not those of the ledger", _UNBROKEN),
    ]
    lines += [
        f"the returns of {name} are self-reported: {found.self_reported}"
        for name, found in measured.items()
        if found and found.self_reported
    ]
    if not report.currency:
        lines.append(f"world {report.world_id} has no capital, so there are no returns: docs/worlds.md")
    return lines


def _equity(each: EquityFigures) -> list[str]:
    return [
        str(each.days),
        money(each.capital) if each.capital is not None else "-",
        money(each.profit),
        money(each.earned),
        _percent(each.period_return),
        _percent(each.max_drawdown),
    ]


def _trading(each: EquityFigures) -> list[str]:
    return [
        _exposure(each.gross, each.gross_share),
        _exposure(each.net, each.net_share),
        money(each.turnover),
        money(each.costs),
        _figure(each.costs_bps),
    ]


def _exposure(amount: Decimal, share: float | None) -> str:
    return money(amount) if share is None else f"{money(amount)} ({_percent(share)})"


def _backtest(found: BacktestFigures | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    return [
        _percent(found.total_return),
        _figure(found.sharpe),
        _percent(found.max_drawdown),
        f"{_day(found.data_first)} to {_day(found.data_last)}",
        "self-reported" if found.self_reported else "checked",
    ]


def _day(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d}" if at is not None else "-"


def _percent(value: float | None) -> str:
    return f"{value:.2%}" if value is not None else "-"


def _figure(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else "-"
