"""The figures of an owner from the days that changed are those of all its days one by one."""

from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Context, Decimal
from fractions import Fraction
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from activities.allocation.equity_report import figures_of
from activities.ledger.equity import EquityDay, OwnerDays, Sums
from activities.ledger.exposures import ExposureKey
from qmtl_sdk.contracts.amounts import exact_sum, plain
from qmtl_sdk.contracts.equity_report import EquityFigures

D = Decimal
LAST = date(2026, 11, 30)
OWNER = ExposureKey("s", "paper")
AMOUNTS = st.decimals(-500, 500, places=3)
SUMS = st.builds(Sums, AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS)
DRAWDOWN = Context(prec=28)


class Row(NamedTuple):
    """A stored day."""

    day: str
    gross: str
    net: str
    profit: str
    fees: str
    traded: str


def row_of(day: date, sums: Sums) -> Row:
    return Row(day.isoformat(), **{name: str(value) for name, value in sums._asdict().items()})


@st.composite
def owners(draw: st.DrawFn) -> OwnerDays:
    """Days that changed among up to forty; the newest may be of a clock that was set back later."""
    ago = sorted(draw(st.sets(st.integers(-1, 39), max_size=25)) - ({0} if draw(st.booleans()) else {-1}))
    ago = ago[1:] if ago[:2] == [-1, 0] else ago  # one row is as of now
    rows = [row_of(LAST - timedelta(days=number), draw(SUMS)) for number in reversed(ago)]
    opening = draw(SUMS) if not rows or draw(st.booleans()) else None
    first = LAST - timedelta(days=39 if opening or not ago else max(0, ago[-1]))
    return OwnerDays(OWNER, first, LAST, opening or Sums(), rows)


def drawdown_by_day(series: Sequence[EquityDay], capital: Decimal) -> Decimal:
    peak, worst = capital + series[0].profit - series[0].earned, D(0)
    for day in series:
        equity = capital + day.profit
        peak = max(peak, equity)
        if peak > 0:
            worst = max(worst, DRAWDOWN.divide(peak - equity, peak))
    return worst


def share(amount: Decimal, of: Decimal | None) -> float | None:
    return float(Fraction(amount) / Fraction(of)) if of is not None and of > 0 else None


def figures_by_day(series: Sequence[EquityDay], capital: Decimal | None) -> EquityFigures:
    """The definition: one day after the other."""
    newest, base = series[-1], capital or None
    opening = series[0].profit - series[0].earned
    earned = newest.profit - opening
    turnover, costs = exact_sum(day.turnover for day in series), exact_sum(day.costs for day in series)
    return EquityFigures(
        strategy_id=OWNER.strategy_id,
        account=OWNER.account,
        capital=capital,
        days=len(series),
        profit=plain(newest.profit),
        earned=plain(earned),
        period_return=share(earned, base + opening) if base else None,
        max_drawdown=float(drawdown_by_day(series, base)) if base else None,
        gross=plain(newest.gross),
        net=plain(newest.net),
        gross_share=share(newest.gross, base),
        net_share=share(newest.net, base),
        turnover=plain(turnover),
        costs=plain(costs),
        costs_bps=share(costs * 10_000, turnover),
    )


@given(owners(), st.none() | st.decimals(0, 600, places=2))
def test_figures_are_those_of_each_day(its: OwnerDays, capital: Decimal | None) -> None:
    series = its.series()
    assert [day.day for day in series] == [its.first + timedelta(days=n) for n in range(its.number)]
    assert series[-1].day == LAST
    assert figures_of(its, capital) == figures_by_day(series, capital)


def test_equity_that_is_lost_has_a_drawdown_of_more_than_all() -> None:
    lost = [row_of(LAST, Sums(profit=D(-150)))]
    found = figures_of(OwnerDays(OWNER, LAST, LAST, Sums(), lost), D(100))
    assert (found.period_return, found.max_drawdown) == (-1.5, 1.5)
    before = figures_of(OwnerDays(OWNER, LAST, LAST, Sums(profit=D(-150)), lost), D(100))
    assert before.period_return is None


def test_a_fall_counts_from_the_highest_equity_before_it() -> None:
    profits = (10, -12, 8, 20, 10)
    rows = [row_of(LAST - timedelta(days=4 - n), Sums(profit=D(each))) for n, each in enumerate(profits)]
    assert OwnerDays(OWNER, LAST, LAST, Sums(), rows).max_drawdown(D(100)) == D("0.2")
