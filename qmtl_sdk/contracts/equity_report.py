"""The equity of a world and its strategies by the ledger, beside what their backtests say."""

import datetime as dt
from decimal import Decimal

from pydantic import Field

from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime

MOST_REPORT_DAYS = 400
"""The days of the longest report."""

DEFAULT_REPORT_DAYS = 90


class ReportQuery(Model):
    """How many days a report covers, today (UTC) included; of which strategy, or of all and the world."""

    days: int = Field(DEFAULT_REPORT_DAYS, ge=1, le=MOST_REPORT_DAYS)
    strategy_id: str = Field("", max_length=128)


class ReportDay(Model):
    """A day in UTC, in the currency of the account; profit and exposure are those of its end.

    `profit`: realised + unrealised + income - fees, since the beginning; `earned`: what the day added to it.
    `turnover`: the notional of the day's fills; `costs`: its fees. What was taken back is subtracted.
    """

    day: dt.date
    profit: Decimal
    earned: Decimal
    gross: Decimal
    net: Decimal
    turnover: Decimal
    costs: Decimal


class BacktestFigures(Model):
    """What the newest evidence of a strategy says, as fractions; None where it says nothing of that.

    `max_drawdown` is positive. `self_reported`: why its returns are the author's own statement.
    """

    total_return: float | None = None
    sharpe: float | None = None
    max_drawdown: float | None = None
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None
    self_reported: str = ""


class EquityFigures(Model):
    """What a strategy, or without `strategy_id` its whole world, made at an account in a report's days.

    `capital` is what it trades with now: the world's `capital` as rebalancings have scaled it, times the
    strategy's weight; None where the world has none. Equity is `capital` + profit. `period_return` is
    `earned` as a share of the equity before the first day, `max_drawdown` the largest fall of a day's equity
    from the highest one before, as a share of that; the shares of exposure are of `capital`. They are None
    without a capital above 0. `costs_bps`: costs in basis points of the turnover, None without turnover.
    `profit`, `gross` and `net` are as of now, `earned`, `turnover` and `costs` of the days together. `days`
    counts those since its first entry. `series` is that of the strategy asked for, otherwise of the world.
    """

    strategy_id: str
    account: str
    capital: Decimal | None
    days: int
    profit: Decimal
    earned: Decimal
    period_return: float | None
    max_drawdown: float | None
    gross: Decimal
    net: Decimal
    gross_share: float | None
    net_share: float | None
    turnover: Decimal
    costs: Decimal
    costs_bps: float | None
    backtest: BacktestFigures | None = None
    series: tuple[ReportDay, ...] = ()


class EquityReport(Model):
    """`GET /worlds/{id}/report`: the strategies that have traded by id and account, and the whole world."""

    world_id: str
    currency: str = ""
    first: dt.date
    last: dt.date
    strategies: tuple[EquityFigures, ...]
    accounts: tuple[EquityFigures, ...]
