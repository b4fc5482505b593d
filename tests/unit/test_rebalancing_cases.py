"""Worked cases of a rebalancing: allocations before and after, positions → deltas."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest

from activities.allocation.planner import plan_rebalancing
from qmtl_sdk.contracts.allocations import AccountLimits
from tests.support.rebalancing import Change, planned, request, shown

HALF: dict[str, Change] = {"a": ("0.4", "0.2")}
TWO_THIRDS: dict[str, Change] = {"a": ("0.3", "0.2")}
DOUBLE: dict[str, Change] = {"a": ("0.2", "0.4")}
CROSSING: dict[str, Change] = {"a": ("0.4", "0.4", {"s": ("0.1", "0"), "t": ("0.1", "0.2")})}
SHARED = {"max_gross_notional": "100000", "max_net_notional": "100000", "min_margin_headroom": "0"}
SHARED_ACCOUNT = {**SHARED, "equity": "100000"}
OVERLAY = {"instrument_by_world": {"a": "PERP"}, "price_by_symbol": {"PERP": "50"}}
BY_ES: dict[str, Any] = {
    "mode": "hybrid",
    "overlay": {"instrument_by_world": {"a": "ES"}, "price_by_symbol": {"ES": "10"}},
}


@dataclass(frozen=True)
class Case:
    name: str
    worlds: dict[str, Change]
    positions: list[str]
    deltas: list[str]
    dropped: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


def rules(**values: Any) -> dict[str, Any]:
    return {"instruments": {"lot": "1", **values}}


def limited(**values: str) -> dict[str, Any]:
    return {"limits": values}


CASES = [
    # the worked figures of the rules
    Case("two thirds of 3 at 100 sells 1", TWO_THIRDS, ["a/s X 3 @ 100"], ["a X -1"]),
    Case("opposite changes net to no order", DOUBLE, ["a/s X 4 @ 10", "a/t X -4 @ 10"], [], ["a X 0 netted"]),
    Case("a short of 1 that doubles sells 1", DOUBLE, ["a/s X -1 @ 100"], ["a X -1"]),
    # scales
    Case("nothing changes", {"a": ("0.3", "0.3")}, ["a/s X 3 @ 100"], []),
    Case("no positions", TWO_THIRDS, [], []),
    Case("half of a long", HALF, ["a/s X 10 @ 5"], ["a X -5"]),
    Case("half of a short", HALF, ["a/s X -10 @ 5"], ["a X 5"]),
    Case("twice a long", DOUBLE, ["a/s X 10 @ 5"], ["a X 10"]),
    Case("to nothing: sell all", {"a": ("0.3", "0")}, ["a/s X 7 @ 1"], ["a X -7"]),
    Case("to nothing: cover all", {"a": ("0.3", "0")}, ["a/s X -7 @ 1"], ["a X 7"]),
    Case("from nothing to something keeps what is there", {"a": ("0", "0.3")}, ["a/s X 7 @ 1"], []),
    Case("from nothing to nothing sells what is there", {"a": ("0", "0")}, ["a/s X 7 @ 1"], ["a X -7"]),
    Case("a third of 1 is exact", {"a": ("0.3", "0.1")}, ["a/s X 3 @ 7"], ["a X -2"]),
    Case("two scales in one instrument", {"a": ("0.3", "0.2", {"s": ("0.1", "0")})},
         ["a/s X 3 @ 7", "a/t X 3 @ 7"], ["a X -4"]),
    Case("a strategy of its own weight stays", {"a": ("0.3", "0.2", {"s": ("0.1", "0.1")})},
         ["a/s X 3 @ 7", "a/t X 3 @ 7"], ["a X -1"]),
    Case("a strategy grows while its world shrinks", {"a": ("0.3", "0.2", {"s": ("0.1", "0.2")})},
         ["a/s X 3 @ 7", "a/t Y 3 @ 7"], ["a Y -1", "a X 3"]),
    Case("a strategy of a world that had nothing keeps what is there",
         {"a": ("0", "0.2", {"s": ("0", "0.1")})}, ["a/s X 3 @ 7"], []),
    Case("a strategy that had nothing and gets nothing sells what is there",
         {"a": ("0.3", "0.2", {"s": ("0", "0")})}, ["a/s X 3 @ 7"], ["a X -3"]),
    Case("a strategy without positions can get its first share", {"a": ("0.3", "0.2", {"s": ("0", "0.1")})},
         ["a/s X 0 @ 7", "a/t X 3 @ 7"], ["a X -1"]),
    # netting and rounding
    Case("changes of a third and two thirds add up to a lot", TWO_THIRDS, ["a/s X 1 @ 9", "a/t X 2 @ 9"],
         ["a X -1"]),
    Case("venues are not netted", HALF, ["a/s X.V 2 @ 10", "a/s X.W -2 @ 10"], ["a X.V -1", "a X.W 1"]),
    Case("symbols are not netted", HALF, ["a/s X 2 @ 10", "a/s Y -2 @ 10"], ["a X -1", "a Y 1"]),
    Case("a sale is rounded toward zero", HALF, ["a/s X 5 @ 10"], ["a X -2"]),
    Case("a purchase is rounded toward zero", HALF, ["a/s X -5 @ 10"], ["a X 2"]),
    Case("less than a lot is dropped", HALF, ["a/s X 1 @ 10"], [], ["a X -0.5 below_lot"]),
    Case("lots of 0.1", HALF, ["a/s X 0.5 @ 10"], ["a X -0.2"], [], rules(lot="0.1")),
    Case("lots of 100", HALF, ["a/s X 500 @ 10"], ["a X -200"], [], rules(lot="100")),
    Case("a netted change in lots of 0.001", TWO_THIRDS, ["a/s X 1 @ 10", "a/t X -0.1 @ 10"],
         ["a X -0.3"], [], rules(lot="0.001")),
    Case("a position off its lot is sold but for the rest", {"a": ("0.3", "0")}, ["a/s X 2.5 @ 10"],
         ["a X -2"]),
    # the smallest notional
    Case("below the smallest notional", HALF, ["a/s X 4 @ 10"], [], ["a X -2 below_min_notional"],
         rules(min_trade_notional="20.01")),
    Case("equal to the smallest notional", HALF, ["a/s X 4 @ 10"], ["a X -2"], [],
         rules(min_trade_notional="20")),
    Case("the sum counts, not its parts", HALF, ["a/s X 2 @ 10", "a/t X 2 @ 10"], ["a X -2"], [],
         rules(min_trade_notional="20")),
    Case("the sum counts before it is rounded", HALF, ["a/s X 5 @ 10"], ["a X -2"], [],
         rules(min_trade_notional="25")),
    # layers and aliases
    Case("a venue's lot overrides the global one", HALF, ["a/s X.V 5 @ 10"], ["a X.V -2.5"], [],
         rules(venues=[{"venue": "V", "lot": "0.5"}])),
    Case("a symbol's lot overrides the venue's", HALF, ["a/s X.V 50 @ 10"], ["a X.V -20"], [],
         rules(venues=[{"venue": "V", "lot": "0.5", "symbols": [{"symbol": "X", "lot": "10"}]}])),
    Case("a symbol keeps what only its venue says", HALF, ["a/s X.V 5 @ 10"], [],
         ["a X.V -2.5 below_min_notional"],
         rules(venues=[{"venue": "V", "min_trade_notional": "99", "symbols": [{"symbol": "X",
         "lot": "0.5"}]}])),
    Case("an alias is netted with its symbol", DOUBLE, ["a/s BTC.V 4 @ 10", "a/t XBT.V -3 @ 10"],
         ["a BTC.V 1"], [],
         rules(venues=[{"venue": "V", "symbols": [{"symbol": "BTC", "aliases": ["XBT"]}]}])),
    # several worlds
    Case("each world has its own orders", {"a": ("0.4", "0.2"), "b": ("0.2", "0.4")},
         ["a/s X 4 @ 10", "b/s X 4 @ 10"], ["a X -2", "b X 4"]),
    Case("worlds are netted in a shared account", {"a": ("0.4", "0.2"), "b": ("0.2", "0.4")},
         ["a/s X 4 @ 10", "b/s X 4 @ 10"], ["X 2"], [],
         {"scope": "global", "shared_account": SHARED_ACCOUNT}),
    Case("worlds net to no order in a shared account", {"a": ("0.4", "0.2"), "b": ("0.2", "0.4")},
         ["a/s X 4 @ 10", "b/s X 2 @ 10"], [], ["X 0 netted"],
         {"scope": "global", "shared_account": SHARED_ACCOUNT}),
    Case("halves of a lot add up in a shared account", {"a": ("0.4", "0.2"), "b": ("0.4", "0.2")},
         ["a/s X 1 @ 10", "b/s X 1 @ 10"], ["X -1"], [],
         {"scope": "global", "shared_account": SHARED_ACCOUNT}),
    Case("strategies can have orders of their own", DOUBLE, ["a/s X 4 @ 10", "a/t X -4 @ 10"],
         ["a/s X 4", "a/t X -4"], [], {"scope": "strategy"}),
    # limits
    Case("turnover allows half", DOUBLE, ["a/s X 10 @ 10"], ["a X 5"], ["a X 5 turnover"],
         limited(max_turnover="50")),
    Case("turnover is used by reductions first", {"a": ("0.4", "0.2"), "b": ("0.2", "0.4")},
         ["a/s X 10 @ 10", "b/s Y 10 @ 10"], ["a X -5", "b Y 2"], ["b Y 8 turnover"],
         limited(max_turnover="70")),
    Case("turnover below the reductions leaves nothing else", {"a": ("0.4", "0.2"), "b": ("0.2", "0.4")},
         ["a/s X 10 @ 10", "b/s Y 10 @ 10"], ["a X -4"], ["a X -1 turnover", "b Y 10 turnover"],
         limited(max_turnover="40")),
    Case("no turnover, no orders", HALF, ["a/s X 10 @ 10"], [], ["a X -5 turnover"],
         limited(max_turnover="0")),
    Case("turnover cuts all increases in one proportion", DOUBLE, ["a/s X 10 @ 10", "a/s Y 20 @ 10"],
         ["a X 5", "a Y 10"], ["a X 5 turnover", "a Y 10 turnover"], limited(max_turnover="150")),
    Case("cash allows three", DOUBLE, ["a/s X 10 @ 10"], ["a X 3"], ["a X 7 cash"], limited(cash="39")),
    Case("without cash nothing is bought", DOUBLE, ["a/s X 10 @ 10"], [], ["a X 10 cash"], limited(cash="0")),
    Case("without cash all is sold", HALF, ["a/s X 10 @ 10"], ["a X -5"], [], limited(cash="-5")),
    Case("a sale pays for a purchase", {"a": ("0.4", "0.2", {"t": ("0.1", "0.2")})},
         ["a/s X 10 @ 10", "a/t Y 5 @ 10"], ["a X -5", "a Y 5"], [], limited(cash="0")),
    Case("costs are paid from cash", DOUBLE, ["a/s X 10 @ 10"], ["a X 9"], ["a X 1 cash"],
         {**limited(cash="100"), **rules(cost_bps="100")}),
    Case("a purchase at a tick above the mark is paid at the tick", DOUBLE, ["a/s X 10 @ 0.6"], ["a X 6"],
         ["a X 4 cash"], {**limited(cash="6"), **rules(tick="1")}),
    Case("a purchase at a tick below the mark is paid at the mark", DOUBLE, ["a/s X 10 @ 1.4"], ["a X 10"],
         [], {**limited(cash="14"), **rules(tick="1")}),
    Case("a sale at a tick below the mark pays for less",
         {"a": ("0.4", "0.2", {"t": ("0.1", "0.2")})}, ["a/s X 10 @ 1.4", "a/t Y 7 @ 1"],
         ["a X -5", "a Y 5"], ["a Y 2 cash"], {**limited(cash="0"), **rules(tick="1")}),
    Case("margin locks a tenth", DOUBLE, ["a/s X 10 @ 10"], ["a X 10"], [],
         {**limited(cash="10"), **rules(margin_rate="0.1")}),
    Case("growing a short locks margin", DOUBLE, ["a/s X -10 @ 10"], ["a X -5"], ["a X -5 cash"],
         limited(cash="50")),
    Case("covering a short releases margin", HALF, ["a/s X -10 @ 10"], ["a X 5"], [], limited(cash="0")),
    Case("an order that crosses zero is cut beyond its closing", CROSSING, ["a/s X 5 @ 10", "a/t X -3 @ 10"],
         ["a X -5"], ["a X -3 cash"], limited(cash="20")),
    Case("without cash an order that crosses zero closes what is held", CROSSING,
         ["a/s X 5.5 @ 10", "a/t X -3 @ 10"], ["a X -2"], ["a X -6 cash"], limited(cash="0")),
    Case("a closing below the smallest notional is no order of its own", CROSSING,
         ["a/s X 5 @ 10", "a/t X -3 @ 10"], [], ["a X -8 cash"],
         {**limited(cash="0"), **rules(min_trade_notional="30")}),
    Case("an order that crosses zero uses turnover last", CROSSING,
         ["a/s X 5 @ 10", "a/t X -3 @ 10", "a/s Y 2 @ 10"], ["a Y -2", "a X -4"], ["a X -4 turnover"],
         limited(max_turnover="60")),
    Case("what is left after a cut is below the smallest notional", DOUBLE, ["a/s X 10 @ 10"], [],
         ["a X 10 cash"], {**limited(cash="30"), **rules(min_trade_notional="40")}),
    # overlay and hybrid
    Case("an overlay trades its instrument alone", HALF, ["a/s X 10 @ 10", "a/t Y 10 @ 20"],
         ["overlay a PERP -3"], [], {"mode": "overlay", "overlay": OVERLAY}),
    Case("an overlay of a short buys", HALF, ["a/s X -10 @ 10"], ["overlay a PERP 1"], [],
         {"mode": "overlay", "overlay": OVERLAY}),
    Case("an overlay of a balanced world has nothing to do", HALF, ["a/s X 10 @ 10", "a/t Y -5 @ 20"], [], [],
         {"mode": "overlay", "overlay": OVERLAY}),
    Case("an overlay counts what is there already", HALF, ["a/s X 10 @ 20", "a/overlay PERP -2 @ 50"],
         ["overlay a PERP -1"], [], {"mode": "overlay", "overlay": OVERLAY}),
    Case("an overlay below a lot is dropped", HALF, ["a/s X 1 @ 10"], [], ["overlay a PERP -0.1 below_lot"],
         {"mode": "overlay", "overlay": OVERLAY}),
    Case("a hybrid trades the overlay, then the positions, and takes the overlay back", HALF,
         ["a/s X 10 @ 10"], ["overlay a PERP -1", "a X -5", "unwind a PERP 1"], [],
         {"mode": "hybrid", "overlay": OVERLAY}),
    Case("a hybrid's overlay counts twice as turnover", HALF, ["a/s X 10 @ 10"],
         ["overlay a PERP -1", "a X -5", "unwind a PERP 1"], [],
         {"mode": "hybrid", "overlay": OVERLAY, **limited(max_turnover="150")}),
    Case("a hybrid's overlay gets the turnover that the positions leave", HALF, ["a/s X 10 @ 10"],
         ["a X -5"], ["overlay a PERP -1 turnover"],
         {"mode": "hybrid", "overlay": OVERLAY, **limited(max_turnover="149")}),
    Case("a hybrid spends no cash on an overlay that positions need", DOUBLE, ["a/s X 10 @ 100"],
         ["a X 6"], ["overlay a ES 60 cash", "a X 4 cash"], {**BY_ES, **limited(cash="600")}),
    Case("a hybrid's overlay is no larger than what is ordered", DOUBLE, ["a/s X 10 @ 100"],
         ["overlay a ES 60", "a X 6", "unwind a ES -60"], ["a X 4 cash"],
         {**BY_ES, **limited(cash="606"), **rules(venues=[{"venue": "", "symbols": [{"symbol": "ES",
         "margin_rate": "0.01"}]}])}),
    Case("what a sale releases comes too late for a hybrid's overlay", HALF, ["a/s X 10 @ 100"],
         ["a X -5"], ["overlay a ES -50 cash"], {**BY_ES, **limited(cash="0")}),
    Case("what worlds cross needs no overlay", {"a": ("0.4", "0.2"), "b": ("0.2", "0.4")},
         ["a/s X 4 @ 50", "b/s X 4 @ 50"], ["overlay b ESB 10", "X 2", "unwind b ESB -10"], [],
         {"scope": "global", "shared_account": SHARED_ACCOUNT, "mode": "hybrid",
         "overlay": {"instrument_by_world": {"a": "ESA", "b": "ESB"},
         "price_by_symbol": {"ESA": "10", "ESB": "10"}}}),
]  # fmt: skip


def test_there_are_at_least_40_cases_and_each_has_its_own_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    plan = planned(case.worlds, case.positions, **case.more)
    assert (shown(plan.deltas), shown(plan.dropped)) == (case.deltas, case.dropped)


def test_increases_of_a_world_are_not_paid_by_reductions_that_the_limits_of_all_cut() -> None:
    free = request(CROSSING, ["a/s X 1 @ 100", "a/t Y 5 @ 10"], limits={"max_turnover": "60"})
    without_cash = [
        world.model_copy(update={"limits": AccountLimits(cash=Decimal(0))}) for world in free.worlds
    ]
    plan = plan_rebalancing(free.model_copy(update={"worlds": tuple(without_cash)}))
    assert shown(plan_rebalancing(free).deltas) == ["a Y 5"]
    assert shown(plan.deltas) == []
    assert shown(plan.dropped) == ["a X -1 turnover", "a Y 5 cash"]
