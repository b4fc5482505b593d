"""The equity of a world day by day equals what its positions as of each day add up to."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

import pytest
from sqlalchemy import text

from activities.ledger.booking import DatedEntry, History
from activities.ledger.equity import EquityDay, daily_equity
from activities.ledger.exposures import WHOLE_WORLD, ExposureKey, Exposures
from activities.ledger.sql import Held, SqlLedger, book_entries, booked_row
from activities.ledger.summary import SqlPositionSummary
from activities.retention import day_sums
from activities.storage.database import Database
from activities.storage.transactions import utc_text
from qmtl_sdk.contracts.amounts import exact_sum
from qmtl_sdk.contracts.ledger import Entry, Position, PositionFilter
from tests.support.desk import Desk

D = Decimal
NOW = datetime(2026, 11, 30, 15, tzinfo=UTC)
ACCOUNTS = ("paper", "live")
STRATEGIES = ("strategy:a", "strategy:b")


class Years:
    """A world whose entries were booked over many days."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.world = Desk(database, strategies=1).world
        self.made: list[DatedEntry] = []
        self.back: set[str] = set()  # fills that are taken back

    def book(self, *entries: tuple[datetime, dict[str, object]]) -> None:
        """Book entries, each with when it was recorded."""
        begin = len(self.made)
        found = [self._entry(begin + n, at, fields) for n, (at, fields) in enumerate(entries)]
        with self.database.write("test", bookkeeping=True) as tx:
            book_entries(tx, self.world, found)
        self.made += found

    def _entry(self, number: int, at: datetime, fields: dict[str, object]) -> DatedEntry:
        base = {"kind": "fill", "ref": str(number), "strategy_id": "strategy:a", "account": "paper"}
        return DatedEntry(utc_text(at), Entry.model_validate({**base, "symbol": "A", **fields}))

    def series(
        self, days: int = 400, strategy_id: str | None = None, now: datetime = NOW
    ) -> dict[ExposureKey, tuple[EquityDay, ...]]:
        with self.database.read() as session:
            return daily_equity(session.connection(), self.world, now, days, strategy_id)

    def paper(self, **fields: int) -> tuple[EquityDay, ...]:
        return self.series(strategy_id=WHOLE_WORLD, **fields)[ExposureKey(WHOLE_WORLD, "paper")]

    def random_entries(self, rng: Random, days: int, number: int) -> None:
        """Book entries of all kinds over `days` days, in batches."""
        times = sorted(
            NOW - timedelta(days=rng.randrange(days), seconds=rng.randrange(86_400)) for _ in range(number)
        )
        while times:
            batch = list[tuple[datetime, dict[str, object]]]()
            for at in times[: rng.randint(1, 4)]:
                batch.append((at, self._random(rng)))
            times = times[len(batch) :]
            self.book(*batch)

    def _random(self, rng: Random) -> dict[str, object]:
        place = {
            "strategy_id": rng.choice(STRATEGIES),
            "account": rng.choice(ACCOUNTS),
            "symbol": rng.choice("AB"),
        }
        fills = [e.entry for e in self.made if e.entry.kind == "fill" and e.entry.ref not in self.back]
        kind = rng.choice(("fill", "fill", "fill", "adjustment", "dividend", "fee", "split", "reversal"))
        amount = D(rng.randint(1, 900)) / 100
        if kind in ("fill", "adjustment"):
            traded = {"quantity": rng.choice((-3, -1, 2, 5)), "price": D(rng.randint(5000, 15000)) / 100}
            return {**place, "kind": kind, **traded, "fee": amount if kind == "fill" else 0}
        if kind == "reversal" and fills:
            gone = rng.choice(fills)
            self.back.add(gone.ref)
            mine = {"strategy_id": gone.strategy_id, "account": gone.account, "symbol": gone.symbol}
            return {**mine, "kind": "reversal", "reverses": gone.ref}
        if kind == "split":
            return {**place, "kind": "split", "ratio": rng.choice((2, 3, D("0.5")))}
        return (
            {**place, "kind": "fee", "fee": amount}
            if kind == "fee"
            else {**place, "kind": "dividend", "cash": amount}
        )

    def as_of(self, owner: ExposureKey, moment: datetime) -> tuple[Decimal, Decimal, Decimal, Decimal]:
        """Profit, gross, net and fees of an owner from its positions as of a time."""
        asked = PositionFilter(as_of=moment, closed=True)
        mine = [
            item
            for item in SqlLedger(self.database).positions(self.world, asked)
            if item.account == owner.account and owner.strategy_id in (item.strategy_id, WHOLE_WORLD)
        ]
        held = [item.position for item in mine]
        values = [item.quantity * item.mark for item in held]
        profit = [
            p.realised + item.unrealised + p.income - p.fees for p, item in zip(held, mine, strict=True)
        ]
        return (
            exact_sum(profit),
            exact_sum(map(abs, values)),
            exact_sum(values),
            exact_sum(p.fees for p in held),
        )


@pytest.fixture
def years(database: Database) -> Years:
    return Years(database)


def at_end(day: EquityDay) -> datetime:
    return datetime(day.day.year, day.day.month, day.day.day, 23, 59, 59, 999_999, UTC)


@pytest.mark.parametrize("seed", range(6))
def test_each_day_is_what_the_positions_as_of_its_end_add_up_to(years: Years, seed: int) -> None:
    rng = Random(seed)
    years.random_entries(rng, days=25, number=60)
    whole = years.series()
    for days in (3, 12, 400):
        found = years.series(days)
        assert found.keys() == whole.keys()
        for owner, series in found.items():
            assert series == whole[owner][-len(series) :]
            assert [day.day for day in series] == sorted({day.day for day in series})
            assert series[-1].day == NOW.date()
    for owner, series in whole.items():
        fees_before = profit_before = D(0)
        for day in series:
            profit, gross, net, fees = years.as_of(owner, at_end(day))
            assert (day.profit, day.gross, day.net) == (profit, gross, net)
            assert (day.earned, day.costs) == (profit - profit_before, fees - fees_before)
            fees_before, profit_before = fees, profit
        traded = [
            each.entry
            for each in years.made
            if each.entry.account == owner.account and owner.strategy_id in (each.entry.strategy_id, "")
        ]
        back = {item.reverses for item in traded}
        left = [abs(e.quantity * e.price) for e in traded if e.kind == "fill" and e.ref not in back]
        assert sum(day.turnover for day in series) == sum(left)


def test_the_newest_day_is_what_the_summary_says_now(years: Years) -> None:
    years.random_entries(Random(9), days=5, number=40)
    now = SqlPositionSummary(years.database).summary(years.world, NOW.replace(hour=0), 0)
    newest = {owner: series[-1] for owner, series in years.series(1).items()}
    sums = {ExposureKey(each.strategy_id, each.account): each for each in now.strategies}
    sums |= {ExposureKey(WHOLE_WORLD, each.account): each for each in now.accounts}
    assert newest.keys() == sums.keys()
    for owner, each in sums.items():
        day = newest[owner]
        assert (day.profit, day.gross, day.net) == (each.profit, each.gross, each.net)
        assert day.earned == each.profit_today


def test_a_day_without_entries_is_as_the_one_before_and_a_series_begins_with_its_first_entry(
    years: Years,
) -> None:
    bought = {"quantity": 2, "price": 100, "fee": 1}
    years.book((NOW - timedelta(days=5), bought), (NOW - timedelta(days=2), {"quantity": -2, "price": 110}))
    series = years.paper()
    assert [day.profit for day in series] == [D(-1), D(-1), D(-1), D(19), D(19), D(19)]
    assert [day.turnover for day in series] == [D(200), D(0), D(0), D(220), D(0), D(0)]
    assert [day.costs for day in series] == [D(1), D(0), D(0), D(0), D(0), D(0)]
    assert [day.gross for day in series] == [D(200), D(200), D(200), D(0), D(0), D(0)]
    assert years.paper(days=2) == series[-2:]
    assert years.series(strategy_id="strategy:nobody") == {}


def test_a_correction_counts_on_the_day_on_which_it_is_booked(years: Years) -> None:
    years.book((NOW - timedelta(days=3), {"quantity": 2, "price": 100, "fee": 1, "ref": "f"}))
    years.book((NOW - timedelta(days=1), {"kind": "reversal", "reverses": "f", "ref": "r"}))
    first, _, third, _ = years.paper()
    assert (first.turnover, first.costs) == (D(200), D(1))
    assert (third.turnover, third.costs, third.profit) == (D(-200), D(-1), D(0))


def test_a_clock_that_was_set_back_hides_nothing(years: Years) -> None:
    years.book((NOW + timedelta(days=2), {"quantity": 2, "price": 100, "fee": 1}))
    years.book((NOW, {"quantity": 1, "price": 100, "fee": 1, "symbol": "B"}))
    assert years.paper()[-1].profit == D(-2)
    assert years.paper()[-1].turnover == D(300)


def test_entries_that_were_removed_still_count(years: Years) -> None:
    years.random_entries(Random(3), days=20, number=50)
    before = years.series()
    with years.database.write("test", bookkeeping=True) as tx:
        tx.connection.execute(text("DELETE FROM ledger"))
    assert years.series() == before


def test_the_days_of_a_series_are_limited(years: Years) -> None:
    for days in (0, 401):
        with pytest.raises(ValueError, match="1 to 400 days"):
            years.series(days)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("", ""),
        ("UPDATE exposure_day SET net = '1.5' WHERE day = '2026-11-12'", "day (ExposureKey("),
        ("DELETE FROM exposure_day WHERE day = '2026-11-12'", "day (ExposureKey("),
        (
            "INSERT INTO exposure_day SELECT world_id, strategy_id, account, '2026-01-01', gross, net, "
            "profit, fees, traded FROM exposure_day WHERE day = '2026-11-12'",
            "number of days of ExposureKey(",
        ),
    ],
)
def test_days_are_compared_with_the_log_some_at_a_time(
    years: Years, monkeypatch: pytest.MonkeyPatch, damage: str, named: str
) -> None:
    """All days of all owners were in memory, twice."""
    monkeypatch.setattr(day_sums, "CHUNK", 3)
    for number in range(30, 0, -1):
        years.book((NOW - timedelta(days=number), {"quantity": 1, "price": 100, "fee": 1}))
    with years.database.write("test", bookkeeping=True) as tx:
        tx.connection.execute(text(damage or "SELECT 1"))
    held, exposures, most = Held(), Exposures(), 0
    with years.database.read() as session:
        days = day_sums.DaySums(session.connection(), years.world)
        for dated in years.made:
            before = held[dated.key][1] if dated.key in held else Position()
            booked_row(dated, held, lambda _: History())
            exposures.move(dated.key, dated.entry.kind, before, held[dated.key])
            days.compare_ended(exposures)
            most = max(most, len(exposures.days))
        found = days.differences_of(exposures)
    assert most < 10, "of 60 days of two owners"
    assert len(found) == (2 if named else 0)
    assert all(difference.startswith(named) for difference in found)
