"""A report of equity as people read it."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from io import StringIO
from typing import Any

from rich.console import Console

from api.cli.text.report import report_text
from qmtl_sdk.contracts.equity_report import BacktestFigures, EquityFigures, EquityReport

DAY = date(2026, 11, 30)


class Names(dict[str, str]):
    """Names of strategies that need no Gateway."""


NAMES: Any = Names({"s1": "Trend", "s2": "Carry"})  # Any: it stands in for names that a Gateway has


def figures(strategy_id: str, **fields: object) -> EquityFigures:
    amounts: Mapping[str, object] = dict.fromkeys(
        ("profit", "earned", "gross", "net", "turnover", "costs"), Decimal(0)
    )
    shares = dict.fromkeys(
        ("capital", "period_return", "max_drawdown", "gross_share", "net_share", "costs_bps")
    )
    base = {"strategy_id": strategy_id, "account": "paper", "days": 3, **amounts, **shares}
    return EquityFigures.model_validate({**base, **fields})


def report(*strategies: EquityFigures, currency: str = "USD") -> EquityReport:
    return EquityReport(
        world_id="w",
        currency=currency,
        first=DAY,
        last=DAY,
        strategies=strategies,
        accounts=(figures("", costs=Decimal("2.5")),) if strategies else (),
    )


def text_of(found: EquityReport, strategy: str = "", width: int = 80) -> str:
    shown = StringIO()
    console = Console(file=shown, width=width, highlight=False, soft_wrap=True)  # as the command has it
    for line in report_text(found, NAMES, strategy):
        console.print(line)
    return shown.getvalue()


BACKTEST = BacktestFigures(
    total_return=0.4,
    sharpe=1.5,
    max_drawdown=0.1,
    data_first=datetime(2023, 1, 2, tzinfo=UTC),
    data_last=datetime(2024, 6, 28, tzinfo=UTC),
)


def test_equity_stands_beside_the_backtest_and_what_is_missing_is_a_dash() -> None:
    known = figures("s1", capital=Decimal(5000), period_return=-0.0123, max_drawdown=0.02, backtest=BACKTEST)
    lines = text_of(report(known, figures("s2")), width=250).splitlines()
    trend, carry, whole = (
        [line for line in lines if f" {name}" in line] for name in ("Trend", "Carry", "all (")
    )
    for part in ("5000.00", "-1.23%", "2.00%"):
        assert part in trend[0]
    for part in ("40.00%", "1.50", "10.00%", "2023-01-02 to 2024-06-28", "checked"):
        assert part in trend[2]
    assert [line.count(" - ") for line in carry] == [3, 1, 5]
    assert len(whole) == 2
    assert " 2.50 " in whole[1]
    assert "2026-11-30 to 2026-11-30 (UTC), in USD" in lines[0]


def test_a_report_can_be_read_at_80_columns() -> None:
    amounts = {
        name: Decimal(text)
        for name, text in (
            ("capital", "26666.666666666666666666666667"),
            ("profit", "-1234.567"),
            ("earned", "-1234.567"),
            ("gross", "12345.678"),
            ("net", "-12345.678"),
            ("turnover", "123456.789"),
            ("costs", "12.3456"),
        )
    }
    shares = {"gross_share": 0.463, "net_share": -0.463, "costs_bps": 1.0}
    measured = {"days": 90, "period_return": -0.0449, "max_drawdown": 0.1234, "backtest": BACKTEST}
    shown = text_of(report(figures("s1", **amounts, **shares, **measured)))
    rows = [line for line in shown.splitlines() if line[:1] in "┃│"]
    assert len(rows) >= 9
    assert all(len(line) <= 80 for line in rows)
    words = "strategy days capital profit earned return drawdown gross net turnover costs bps sharpe returns"
    assert [word for word in words.split() if f" {word} " not in shown] == []
    cells = "26666.67 -1234.57 12345.68 -12345.68 123456.79 12.35 (46.30%) -4.49% 12.34% 2024-06-28"
    assert [cell for cell in cells.split() if f" {cell} " not in shown] == []


def test_a_backtest_that_is_self_reported_says_so_and_why() -> None:
    said = BACKTEST.model_copy(update={"self_reported": "the world has no bars"})
    shown = text_of(report(figures("s1", backtest=said), figures("s1", account="live", backtest=said)))
    assert shown.count(" self-reported ") == 1
    assert "the returns of Trend are self-reported: the world has no bars" in shown
    assert "checked" not in shown


def test_a_world_without_capital_says_why_it_has_no_return() -> None:
    assert "world w has no capital, so there are no returns" in text_of(report(figures("s1"), currency=""))


def test_a_world_without_fills_is_one_line() -> None:
    assert text_of(report()) == "w has no fills yet: there is no equity to report\n"
    assert text_of(report(), "Trend") == "Trend in w has no fills yet: there is no equity to report\n"
