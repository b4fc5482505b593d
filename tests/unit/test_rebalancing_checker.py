"""The checker of rebalancings finds each kind of broken promise, and none where there is none."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest

from tests.support.rebalancing_checker import (
    Facts,
    LogFact,
    RunFact,
    TheirOrder,
    TradeFact,
    rebalancing_violations,
)

D = Decimal
LEFT, RIGHT, LONE = (("w", name, "exchange", "AAPL") for name in ("left", "right", "lone"))

TRADES = (
    TradeFact(LEFT, D(-15), D(-10), D(-15), "filled", "o1"),
    TradeFact(RIGHT, D(0), D(10), D(0), "filled", ""),
    TradeFact(LONE, D(5), D(0), D(2), "unfilled", "o2", "cancelled: the time limit"),
)
RUN = RunFact(
    "r1",
    {"w": (D("0.3"), D("0.15"))},
    "partial",
    "12:00:02",
    "12:00:09",
    {LEFT: D(-25), RIGHT: D(10), LONE: D(5)},
    TRADES,
)
AGAIN = RunFact("r2", {"w": (D("0.15"), D("0.2"))}, "completed", "12:01:00", "12:01:02")
LOG = (
    LogFact("w", "12:00:00", "freeze", "a1"),
    LogFact("w", "12:00:01", "unfreeze", "a1"),
    LogFact("w", "12:00:03", "accepted", "o1", "rebalancing"),
    LogFact("w", "12:00:03", "accepted", "o2", "rebalancing"),
    LogFact("w", "12:00:04", "sent", "o1"),
    LogFact("w", "12:00:04", "sent", "o2"),
    LogFact("w", "12:00:05", "partially_filled", "o1", fills=(("f1", D(9)),)),
    LogFact("w", "12:00:06", "filled", "o1", fills=(("f2", D(6)),)),
    LogFact("w", "12:00:07", "cancelled", "o2", fills=(("f3", D(2)),)),
)
GOOD = Facts(
    runs=(AGAIN, RUN),
    log=LOG,
    theirs={
        "o1": TheirOrder("w", "left", "AAPL", -1, D(15), {"f1": D(9), "f2": D(6)}),
        "o2": TheirOrder("w", "lone", "AAPL", 1, D(5), {"f3": D(2)}),
    },
    doubled=(),
    held={LEFT: D(-25), RIGHT: D(10), LONE: D(2)},
    differences=(),
    locks={"w": ""},
    first={"w": D("0.3")},
    shares={"w": D("0.2")},
    scales={"w": Fraction(2, 3)},
    wanted={LEFT: D(-39), LONE: D(3)},
)


def with_run(**fields: object) -> Facts:
    return replace(GOOD, runs=(AGAIN, replace(RUN, **fields)))  # type: ignore[arg-type]


def with_trade(number: int, **fields: object) -> Facts:
    trades = list(TRADES)
    trades[number] = replace(trades[number], **fields)  # type: ignore[arg-type]
    return with_run(trades=tuple(trades))


def with_log(*rows: LogFact) -> Facts:
    return replace(GOOD, log=(*LOG, *rows))


def without_fill(fill_id: str) -> Facts:
    rows = (replace(row, fills=[item for item in row.fills if item[0] != fill_id]) for row in LOG)
    return replace(GOOD, log=tuple(rows))


def placed_again() -> Facts:
    """A retry of an order under another client id."""
    return replace(GOOD, theirs={**GOOD.theirs, "o1-again": GOOD.theirs["o1"]})


def test_nothing_is_found_where_no_promise_is_broken() -> None:
    assert rebalancing_violations(GOOD) == []


def test_a_run_that_changes_nothing_is_completed_without_a_lock_and_no_other_one() -> None:
    nothing = RunFact("r0", {"w": (D("0.3"), D("0.3"))}, "completed", "", "11:59:00")
    assert rebalancing_violations(replace(GOOD, runs=(nothing, AGAIN, RUN))) == []
    changed = replace(nothing, changes={"w": (D("0.3"), D("0.4"))})
    found = rebalancing_violations(replace(GOOD, runs=(changed, AGAIN, RUN)))
    assert "r0 is completed, and its worlds were never locked" in found


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (lambda: with_run(outcome=""), "r1 has not ended"),
        (lambda: with_run(ended_at=""), "r1 has not ended"),
        (lambda: with_run(outcome="rolled_back"), "r1 is rolled back, and its worlds were locked"),
        (lambda: with_run(locked_at=""), "r1 is partial, and its worlds were never locked"),
        (lambda: with_run(outcome="completed"), "r1 is completed, and 1 of its trades are not filled"),
        (lambda: with_run(planned={LEFT: D(-25)}), "r1 orders 5 at ('w', 'lone', 'exchange', 'AAPL')"),
        (lambda: with_run(planned={**RUN.planned, LONE: D(4)}), "and its plan leaves 4"),
        (lambda: with_run(planned={**RUN.planned, LONE: D(-5)}), "and its plan leaves -5"),
        (lambda: with_run(trades=TRADES[:2]), "r1 has no trade at ('w', 'lone', 'exchange', 'AAPL')"),
        (lambda: with_trade(2, state="planned"), "has ended, and a trade of it is planned"),
        (lambda: with_trade(1, crossed=D(9)), "does not add up to nothing"),
        (lambda: with_trade(2, order_id="o3"), "order o3 of r1 is unfilled and was accepted 0 times"),
        (lambda: with_trade(2, order_id="o3"), "order o2 was accepted for a rebalancing, and is of no trade"),
        (lambda: with_trade(2, state="skipped"), "order o2 of r1 is skipped and was accepted 1 times"),
        (lambda: with_trade(2, order_id="o1"), "order o1 is that of 2 trades"),
        (lambda: with_trade(0, filled=D(-9)), "order o1 of r1 filled -15, and its trade says -9"),
        (
            lambda: with_log(LogFact("w", "12:00:08", "accepted", "o1", "rebalancing")),
            "order o1 of r1 is filled and was accepted 2 times",
        ),
        (placed_again, "order o1-again is at the exchange, and was never marked as sent"),
        (placed_again, "the ledger holds -13 of AAPL, the exchange -28"),
        (lambda: replace(GOOD, doubled=("o1",)), "order o1 was placed twice with other content"),
        (lambda: without_fill("f2"), "the fill f2 is lost"),
        (
            lambda: with_log(LogFact("w", "12:00:08", "fill", "o1", fills=[("f2", D(6))])),
            "the fill f2 is doubled: 2 in the log",
        ),
        (
            lambda: with_log(LogFact("w", "12:00:08", "fill", "o1", fills=[("f4", D(6))])),
            "the fill f4 is doubled: 1 in the log, 0 there",
        ),
        (lambda: replace(GOOD, held={LEFT: D(-25), RIGHT: D(10)}), "the ledger holds -15 of AAPL"),
        (
            lambda: replace(GOOD, held={LEFT: D(-15), RIGHT: D(0), LONE: D(2)}),
            "('w', 'right', 'AAPL') holds 0, and its fills and crossings are 10",
        ),
        (lambda: replace(GOOD, differences=("w: entry 1",)), "w: entry 1"),
        (lambda: replace(GOOD, locks={"w": "r1"}), "w is locked by r1, and everything rests"),
        (
            lambda: with_log(LogFact("w", "12:00:08", "freeze", "a2")),
            "an apply froze w at 12:00:08 while r1 held it (12:00:02 to 12:00:09)",
        ),
        (lambda: with_run(locked_at="12:00:00"), "an apply froze w at 12:00:00 while r1 held it"),
        (
            lambda: with_log(
                LogFact("w", "12:00:10", "freeze", "a2"),
                LogFact("w", "12:00:11", "accepted", "o9", "rebalancing"),
            ),
            "order o9 of a rebalancing was accepted while a2 held w",
        ),
        (lambda: with_run(ended_at="12:01:01"), "r2 locked w while r1 held it"),
        (lambda: with_run(changes={"w": (D("0.2"), D("0.15"))}), "r1 begins with w at 0.2, and it had 0.3"),
        (lambda: replace(GOOD, shares={"w": D("0.15")}), "w has a share of 0.15"),
        (lambda: replace(GOOD, wanted={LONE: D(6)}), "holds 2 at rest, and wants 4.000"),
        (lambda: replace(GOOD, scales={"w": Fraction(1, 2)}), "w is scaled by 1/2, and its runs make 2/3"),
    ],
)
def test_each_broken_promise_is_named(make: Callable[[], Facts], finding: str) -> None:
    found = rebalancing_violations(make())
    assert any(finding in item for item in found), found


def test_a_share_of_nothing_stops_a_world_and_the_next_counts_against_the_one_before() -> None:
    stops = RunFact("r3", {"w": (D("0.2"), D(0))}, "completed", "12:02:00", "12:02:01")
    stopped = replace(
        GOOD, runs=(*GOOD.runs, stops), shares={"w": D(0)}, scales={"w": Fraction(0)}, wanted={}
    )
    assert rebalancing_violations(stopped) == []
    goes_on = RunFact("r4", {"w": (D(0), D("0.5"))}, "completed", "12:03:00", "12:03:01")
    again = replace(stopped, runs=(*stopped.runs, goes_on), shares={"w": D("0.5")})
    assert rebalancing_violations(replace(again, scales={"w": Fraction(5, 3)})) == []
    assert rebalancing_violations(again) == ["w is scaled by 0, and its runs make 5/3"]
