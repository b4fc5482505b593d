"""Reports of equity: worked figures, capital as rebalancings left it, and backtests beside them."""

import tracemalloc
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from activities.allocation.equity_report import SqlEquityReport
from activities.fence.scales import Scale, WorldScales
from activities.ledger import equity
from activities.ledger.booking import DatedEntry
from activities.ledger.sql import book_entries
from activities.storage.database import Database
from activities.storage.tables import AllocationRow, ExposureDayRow, ExposureRow
from activities.storage.transactions import table_of, utc_now, utc_text
from qmtl_sdk.contracts.equity_report import BacktestFigures, EquityReport, ReportQuery
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import Entry
from tests.support.desk import Desk

D = Decimal
NOW = datetime(2026, 11, 30, 15, tzinfo=UTC)
METRICS = {"total_return": 0.4, "sharpe": 1.5, "max_drawdown": 0.1}


class Traded:
    """A world whose two strategies have traded."""

    def __init__(self, database: Database, **spec: object) -> None:
        self.database = database
        self.desk = Desk(database, strategies=2, **spec)
        self.desk.evidence(self.desk.strategies[0], metrics=METRICS)
        self.desk.apply("dryrun")
        self.number = 0

    def book(self, days_ago: int, strategy: int = 0, **fields: object) -> None:
        self.number += 1
        entry = {
            "kind": "fill",
            "ref": str(self.number),
            "strategy_id": self.desk.strategies[strategy],
            "account": "paper",
            "symbol": "A",
            **fields,
        }
        dated = DatedEntry(utc_text(NOW - timedelta(days=days_ago)), Entry.model_validate(entry))
        with self.database.write("test", bookkeeping=True) as tx:
            book_entries(tx, self.desk.world, [dated])

    def report(self, **asked: object) -> EquityReport:
        return SqlEquityReport(self.database).report(self.desk.world, ReportQuery.model_validate(asked), NOW)

    def scale(self, text: str) -> None:
        scales = WorldScales(world=Scale.model_validate_json(text)).model_dump_json()
        row = AllocationRow(world_id="w", body="{}", updated_at=utc_now(), scales=scales)
        with self.database.write("test", bookkeeping=True) as tx:
            tx.upsert(row)


CAPITAL = {"capital": {"amount": "10000"}}


@pytest.fixture
def traded(database: Database) -> Traded:
    found = Traded(database, **CAPITAL)
    found.book(4, quantity=10, price=100, fee=1)
    found.book(3, quantity=-4, price=110, fee=1)
    found.book(2, quantity=-6, price=90, fee=0)
    found.book(1, strategy=1, quantity=-5, price=50, fee=D("0.5"))
    return found


def test_worked_figures_of_two_strategies_and_their_world(traded: Traded) -> None:
    """10 at 100; 4 sold at 110, so that 6 are marked at 110: profit 98; 6 sold at 90: -22. 5 short at 50."""
    found = traded.report(days=30)
    first, second = found.strategies
    (world,) = found.accounts
    weights = {item.strategy_id: D(str(item.weight)) for item in traded.desk.fence.activations("w")}
    assert first.capital == 10_000 * weights[first.strategy_id]
    assert world.capital == 10_000
    assert (first.profit, first.earned, first.gross, first.turnover) == (D(-22), D(-22), 0, D(1980))
    assert (first.costs, first.days) == (D(2), 5)
    assert first.costs_bps == pytest.approx(2 / 1980 * 10_000)
    assert first.period_return == pytest.approx(-22 / float(first.capital or 0))
    peak = float(first.capital or 0) + 98
    assert first.max_drawdown == pytest.approx(120 / peak)
    assert first.backtest == BacktestFigures(**METRICS)
    assert second.backtest is not None
    assert (second.backtest.sharpe, second.backtest.total_return) == (1.0, None)
    assert (second.gross, second.net, second.days) == (250, -250, 2)
    assert (world.profit, world.turnover, world.costs, world.net) == (D("-22.5"), D(2230), D("2.5"), -250)
    assert world.net_share == -0.025
    assert [day.profit for day in world.series] == [D(-1), D(98), D(-22), D("-22.5"), D("-22.5")]
    assert (first.series, world.backtest) == ((), None)
    assert (found.first.isoformat(), found.last.isoformat()) == ("2026-11-01", "2026-11-30")


def test_a_report_of_few_days_counts_what_was_made_in_them(traded: Traded) -> None:
    (world,) = traded.report(days=3).accounts
    assert (world.profit, world.earned, world.turnover, world.days) == (D("-22.5"), D("-120.5"), D(790), 3)
    assert world.period_return == pytest.approx(-120.5 / 10_098)
    assert world.max_drawdown == pytest.approx(120.5 / 10_098)


def test_a_report_of_one_strategy_has_its_days_and_no_other(traded: Traded) -> None:
    name = traded.desk.strategies[1]
    found = traded.report(strategy_id=name)
    assert found.accounts == ()
    assert [each.strategy_id for each in found.strategies] == [name]
    assert [day.turnover for day in found.strategies[0].series] == [D(250), D(0)]
    assert traded.report(strategy_id="strategy:nobody").strategies == ()


def test_capital_is_as_rebalancings_have_scaled_it(traded: Traded) -> None:
    before = traded.report()
    traded.scale('{"fraction": "2/3"}')
    after = traded.report()
    assert after.accounts[0].capital == D("6666.666666666666666666666667")
    for one, other in zip(before.strategies, after.strategies, strict=True):
        assert float(other.capital or 0) == pytest.approx(float(one.capital or 0) * 2 / 3)
    traded.scale('{"stopped": true, "last": "0.3"}')
    (world,) = traded.report().accounts
    assert (world.capital, world.period_return, world.max_drawdown, world.gross_share) == (
        0,
        None,
        None,
        None,
    )
    assert world.profit == D("-22.5")


def test_a_world_without_capital_has_profit_and_no_return(database: Database) -> None:
    bare = Traded(database)
    assert bare.report() == EquityReport(
        world_id="w", first=NOW.date() - timedelta(days=89), last=NOW.date(), strategies=(), accounts=()
    )
    bare.book(0, kind="dividend", cash=3)
    (world,) = bare.report().accounts
    assert (world.profit, world.capital, world.period_return, world.costs_bps) == (D(3), None, None, None)


def test_a_world_that_does_not_exist_is_said(database: Database) -> None:
    with pytest.raises(QmtlError, match="E_WORLD_UNKNOWN"):
        SqlEquityReport(database).report("none", ReportQuery(), NOW)


def test_a_report_reads_a_chunk_at_a_time_and_keeps_one_owner(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept all days of all owners: half a gigabyte for a thousand strategies."""
    monkeypatch.setattr(equity, "_CHUNK", 50)
    many = Traded(database, **CAPITAL)
    owners, days = [f"strategy:{number:03}" for number in range(60)], 100
    sums = {"world_id": "w", "account": "paper", **dict.fromkeys(equity.Sums._fields, "1.5")}
    last = NOW.date().isoformat()
    now = [{**sums, "strategy_id": owner, "day": last, "peak": "2"} for owner in owners]
    dates = [(NOW.date() - timedelta(days=number)).isoformat() for number in range(days)]
    rows = [{**sums, "strategy_id": owner, "day": day} for day in dates for owner in owners]
    with database.write("test", bookkeeping=True) as tx:
        tx.insert_all(table_of(ExposureRow), now)
        tx.insert_all(table_of(ExposureDayRow), rows)
    many.report(days=days)  # what is loaded once
    tracemalloc.start()
    try:
        assert len(many.report(days=days).strategies) == len(owners)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 250 * days * len(owners), "a day of an owner took 1,400 bytes"
