"""Properties of plans over random portfolios. What must hold is computed here apart from the planner."""

import random
from collections import defaultdict
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from activities.allocation.netting import Holding, net
from activities.allocation.orders import orders_from_plan
from activities.allocation.planner import plan_rebalancing
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.instruments import Instruments
from qmtl_sdk.contracts.rebalance_plan import Delta, RebalancePlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from tests.support.rebalancing import after_fills, planned, request, scale_of

CASES = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
WORLDS = ["a", "b", "c"]
STRATEGIES = ["s", "t", "u"]
SYMBOLS = ["X", "Y", "Z"]
UNLIMITED = {"max_gross_notional": "1e15", "max_net_notional": "1e15", "min_margin_headroom": "0"}

Body = dict[str, Any]


def thousandth(value: int) -> str:
    return str(Decimal(value) / 1000)


def thousandths(most: int, least: int = 0) -> st.SearchStrategy[str]:
    return st.integers(least, most).map(thousandth)


@st.composite
def changes(draw: st.DrawFn, world_id: str) -> Body:
    names = draw(st.sets(st.sampled_from(STRATEGIES), max_size=2))
    strategies = [
        {"strategy_id": name, "before": draw(thousandths(100, least=1)), "after": draw(thousandths(100))}
        for name in sorted(names)
    ]
    before, after = draw(st.integers(200, 333)), draw(st.integers(200, 333))
    if not strategies and draw(st.integers(0, 5)) == 0:
        before, after = draw(st.sampled_from([(0, 300), (300, 0), (0, 0)]))
    return {
        "world_id": world_id,
        "before": str(Decimal(before) / 1000),
        "after": str(Decimal(after) / 1000),
        "strategies": strategies,
    }


@st.composite
def instruments(draw: st.DrawFn) -> Body:
    def rules() -> Body:
        return {
            "lot": draw(st.sampled_from(["1", "0.1", "0.001", "5", "0.07"])),
            "min_trade_notional": draw(st.sampled_from(["0", "10", "300"])),
            "cost_bps": draw(st.sampled_from(["0", "2.5", "50"])),
            "margin_rate": draw(st.sampled_from(["1", "0.5", "0.1"])),
            "supports_reduce_only": draw(st.booleans()),
            "tick": draw(st.sampled_from(["0.01", "0.5"])),
        }

    return {**rules(), "venues": [{"venue": "V", "symbols": [{"symbol": "X", "aliases": ["W"], **rules()}]}]}


@st.composite
def bodies(draw: st.DrawFn, scopes: tuple[str, ...] = ("world", "strategy", "global")) -> Body:
    mode = draw(st.sampled_from(["scaling", "scaling", "overlay", "hybrid"]))
    worlds = [draw(changes(name)) for name in WORLDS[: draw(st.integers(1, 3))]]
    if mode == "overlay":
        worlds = [{**world, "strategies": []} for world in worlds]
    marks = {
        (venue, symbol): draw(thousandths(500_000, least=1)) for venue in ("", "V") for symbol in SYMBOLS
    }
    keys = st.tuples(
        st.sampled_from([world["world_id"] for world in worlds]),
        st.sampled_from(STRATEGIES),
        st.sampled_from(["", "V"]),
        st.sampled_from(SYMBOLS),
    )
    positions = [
        {
            "world_id": key[0],
            "strategy_id": key[1],
            "venue": key[2],
            "symbol": "W" if key[2:] == ("V", "X") and draw(st.booleans()) else key[3],
            "quantity": str(
                Decimal(draw(st.integers(-50_000, 50_000))) / draw(st.sampled_from([1, 100, 1000]))
            ),
            "mark": marks[key[2:]],
        }
        for key in sorted(draw(st.sets(keys, max_size=12)))
    ]
    return {
        "worlds": worlds,
        "positions": positions,
        "instruments": draw(instruments()),
        "scope": draw(st.sampled_from(scopes)),
        "mode": mode,
        "overlay": {
            "instrument_by_world": {name: f"PERP{name}" for name in WORLDS},
            "price_by_symbol": {f"PERP{name}": draw(thousandths(900_000, least=1)) for name in WORLDS},
        },
        "shared_account": {**UNLIMITED, "equity": "1e15"},
    }


@st.composite
def limits(draw: st.DrawFn) -> Body:
    amounts = st.one_of(st.none(), st.integers(0, 3_000_000).map(str))
    return {"cash": draw(amounts), "max_turnover": draw(amounts)}


def read(body: Body) -> MultiWorldRebalanceRequest:
    """Read a request, without what has no effect in its mode and scope."""
    effective = dict(body)
    if body["mode"] == "scaling":
        del effective["overlay"]
    if body["scope"] != "global":
        del effective["shared_account"]
    else:
        effective["worlds"] = [{**world, "limits": {}} for world in body["worlds"]]
    return MultiWorldRebalanceRequest.model_validate(effective)


def resolved(symbol: str) -> str:
    return "X" if symbol == "W" else symbol


def targets(asked: MultiWorldRebalanceRequest) -> dict[tuple[str, str, str, str], Fraction]:
    """What every strategy should hold of every instrument."""
    found: defaultdict[tuple[str, str, str, str], Fraction] = defaultdict(Fraction)
    for item in asked.positions:
        scale = scale_of(asked, item.world_id, item.strategy_id)
        found[item.world_id, item.strategy_id, item.venue, resolved(item.symbol)] += (
            Fraction(item.quantity) * scale
        )
    return found


def held(asked: MultiWorldRebalanceRequest) -> dict[tuple[str, str, str, str], Fraction]:
    found: defaultdict[tuple[str, str, str, str], Fraction] = defaultdict(Fraction)
    for item in asked.positions:
        found[item.world_id, item.strategy_id, item.venue, resolved(item.symbol)] += Fraction(item.quantity)
    return found


def marks(asked: MultiWorldRebalanceRequest) -> dict[tuple[str, str], Fraction]:
    return {(item.venue, resolved(item.symbol)): Fraction(item.mark) for item in asked.positions}


def scope_key(scope: str, key: tuple[str, str, str, str]) -> tuple[str, str, str, str]:
    world, strategy = "" if scope == "global" else key[0], key[1] if scope == "strategy" else ""
    return world, strategy, key[2], key[3]


def delta_key(delta: Delta) -> tuple[str, str, str, str]:
    return delta.world_id, delta.strategy_id, delta.venue, delta.symbol


@CASES
@given(bodies())
def test_plan_and_fills_reach_every_target_within_a_lot_or_the_smallest_notional(body: Body) -> None:
    asked = read({**body, "mode": "scaling"})
    plan = plan_rebalancing(asked)
    gaps: defaultdict[tuple[str, str, str, str], Fraction] = defaultdict(Fraction)
    present = held(asked)
    for key, target in targets(asked).items():
        gaps[scope_key(asked.scope, key)] += target - present[key]
    for delta in plan.deltas:
        gaps[delta_key(delta)] -= Fraction(delta.quantity)
    rules = Instruments(asked.instruments)
    for key, gap in gaps.items():
        instrument = rules.find(*key[2:])
        small = abs(gap) * marks(asked)[key[2:]] < Fraction(instrument.min_trade_notional)
        assert abs(gap) < Fraction(instrument.lot) or small, (key, gap)


@CASES
@given(bodies())
def test_every_strategy_reaches_its_target_within_a_lot_where_there_is_no_smallest_notional(
    body: Body,
) -> None:
    body["instruments"]["min_trade_notional"] = "0"
    body["instruments"]["venues"][0]["symbols"][0]["min_trade_notional"] = "0"
    asked = read({**body, "mode": "scaling"})
    reached: defaultdict[tuple[str, str, str, str], Fraction] = defaultdict(Fraction)
    for key, quantity in after_fills(asked, plan_rebalancing(asked)).items():
        reached[(*key[:3], resolved(key[3]))] += Fraction(quantity)
    rules = Instruments(asked.instruments)
    present = held(asked)
    # Of a position that is no whole number of lots, what others could get by a crossing may be a lot less.
    uneven: defaultdict[tuple[str, str, str, str], int] = defaultdict(int)
    for key, quantity in present.items():
        uneven[scope_key(asked.scope, key)] += quantity % Fraction(rules.find(*key[2:]).lot) != 0
    for key, target in targets(asked).items():
        most = Fraction(rules.find(*key[2:]).lot) * (1 + uneven[scope_key(asked.scope, key)])
        assert abs(target - reached[key]) < most, (key, target, reached[key])


@CASES
@given(st.lists(st.tuples(st.integers(-40, 40), st.integers(0, 20)), min_size=2, max_size=6))
def test_what_strategies_cross_turns_no_position_around(held_and_after: list[tuple[int, int]]) -> None:
    own = {f"s{n}": ("0.01", thousandth(after)) for n, (_, after) in enumerate(held_and_after)}
    positions = [f"a/s{n} X {Decimal(tenths) / 10} @ 10" for n, (tenths, _) in enumerate(held_and_after)]
    plan = planned({"a": ("0.5", "0.5", own)}, positions)
    present = {f"s{n}": Decimal(tenths) / 10 for n, (tenths, _) in enumerate(held_and_after)}
    for item in (*plan.deltas, *plan.dropped):
        parts = {part.strategy_id: part.quantity for part in item.parts}
        if {quantity > 0 for quantity in parts.values()} == {True, False}:
            after = {name: present[name] + quantity for name, quantity in parts.items()}
            assert all(present[name] * after[name] >= 0 for name in parts), (present, parts)


@CASES
@given(bodies())
def test_netting_never_adds_turnover(body: Body) -> None:
    asked = read({**body, "mode": "scaling"})
    present = held(asked)
    apart: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for key, target in targets(asked).items():
        apart[key[2:]] += abs(target - present[key]) * marks(asked)[key[2:]]
    ordered: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for delta in plan_rebalancing(asked).deltas:
        ordered[delta.venue, delta.symbol] += abs(Fraction(delta.notional))
    assert all(notional <= apart[key] for key, notional in ordered.items()), (ordered, apart)


def reached(body: Body, plan: RebalancePlan) -> Body:
    """The request once more, from the allocations and positions that the plan has led to."""
    prices = {(delta.venue, delta.symbol): str(delta.mark) for delta in plan.deltas}
    prices |= {(item["venue"], resolved(item["symbol"])): item["mark"] for item in body["positions"]}
    worlds = [
        {
            **world,
            "before": world["after"],
            "strategies": [{**item, "before": item["after"]} for item in world["strategies"]],
        }
        for world in body["worlds"]
    ]
    positions = [
        {
            "world_id": key[0],
            "strategy_id": key[1],
            "venue": key[2],
            "symbol": key[3],
            "quantity": str(quantity),
            "mark": prices[key[2:]],
        }
        for key, quantity in after_fills(read(body), plan).items()
        if quantity
    ]
    return {**body, "worlds": worlds, "positions": positions}


@CASES
@given(bodies())
def test_planning_again_from_what_was_reached_gives_an_empty_plan(body: Body) -> None:
    # Weights that end at 0 say "sell all" again: what is left of several of them may add up to a lot.
    assume(body["scope"] != "global" or all(Decimal(world["after"]) for world in body["worlds"]))
    assume(all(Decimal(item["after"]) for world in body["worlds"] for item in world["strategies"]))
    plan = plan_rebalancing(read(body))
    assert plan_rebalancing(read(reached(body, plan))).deltas == ()


@CASES
@given(bodies())
def test_planning_again_for_the_same_targets_gives_no_order(body: Body) -> None:
    asked = read({**body, "mode": "scaling"})
    plan = plan_rebalancing(asked)
    rules = Instruments(asked.instruments)
    wanted = targets(asked)
    total: defaultdict[tuple[str, str, str, str], Fraction] = defaultdict(Fraction)
    for key, quantity in after_fills(asked, plan).items():
        total[(*key[:3], resolved(key[3]))] += Fraction(quantity)
    holdings = []
    for key, quantity in total.items():
        decimal = Decimal(quantity.numerator) / Decimal(quantity.denominator)
        assert Fraction(decimal) == quantity
        holdings.append(Holding(key[0], key[1], rules.find(*key[2:]), decimal, wanted[key] - quantity))
    prices = {key: Decimal(str(float(mark))) for key, mark in marks(asked).items()}
    assert [trade for trade in net(holdings, prices, asked.scope) if trade.lots] == []


@CASES
@given(bodies(), limits(), st.randoms(use_true_random=False))
def test_permuted_input_gives_the_same_plan(body: Body, limit: Body, order: random.Random) -> None:
    body = {**body, "limits": limit}
    permuted = {
        **body,
        "positions": [dict(item) for item in order.sample(body["positions"], len(body["positions"]))],
        "worlds": [
            {**world, "strategies": order.sample(world["strategies"], len(world["strategies"]))}
            for world in order.sample(body["worlds"], len(body["worlds"]))
        ],
    }
    for position in permuted["positions"]:
        position["quantity"] = format(Decimal(position["quantity"]), "f") + (
            "0" if "." in position["quantity"] else ".0"
        )
    (venue,) = body["instruments"]["venues"]
    rules = {**venue["symbols"][0], "aliases": ["U", "W", "v"]}
    backwards = {**rules, "aliases": ["v", "W", "U"]}
    body["instruments"] = {
        **body["instruments"],
        "venues": [{"venue": "W"}, {**venue, "symbols": [rules, {"symbol": "Z"}]}],
    }
    permuted["instruments"] = {
        **body["instruments"],
        "venues": [{**venue, "symbols": [{"symbol": "Z"}, backwards]}, {"venue": "W"}],
    }
    plan = plan_rebalancing(read(body))
    again = plan_rebalancing(read(permuted))
    assert again == plan
    assert (again.etag, again.content_hash) == (plan.etag, plan.content_hash)
    assert read(body).content_hash == read(permuted).content_hash


@CASES
@given(bodies(), limits())
def test_a_hybrid_orders_the_positions_that_scaling_would_and_no_larger_overlay(
    body: Body, limit: Body
) -> None:
    hybrid = plan_rebalancing(read({**body, "mode": "hybrid", "limits": limit}))
    scaling = plan_rebalancing(read({**body, "mode": "scaling", "limits": limit}))
    positions = [delta for delta in hybrid.deltas if delta.phase == "scaling"]
    assert positions == list(scaling.deltas)
    overlay = sum(abs(delta.notional) for delta in hybrid.deltas if delta.phase == "overlay")
    assert overlay <= scaling.turnover


def place(delta: Delta) -> tuple[str, ...]:
    return delta.phase, delta.world_id, delta.strategy_id, delta.venue, delta.symbol


def spend(cash: Fraction, delta: Delta, asked: MultiWorldRebalanceRequest) -> Fraction:
    """Return the cash that is left once an order is filled."""
    instrument = Instruments(asked.instruments).find(delta.venue, delta.symbol)
    grown = abs(Fraction(delta.to_quantity)) - abs(Fraction(delta.from_quantity))
    notional = abs(Fraction(delta.quantity)) * Fraction(delta.mark)
    locked = grown * Fraction(delta.mark) * Fraction(instrument.margin_rate)
    worse = Fraction(delta.quantity) * (Fraction(delta.reference_price) - Fraction(delta.mark))
    return cash - locked - max(worse, Fraction()) - notional * Fraction(instrument.cost_bps) / 10_000


@CASES
@given(bodies(), limits(), st.lists(limits(), min_size=3, max_size=3))
def test_no_order_goes_beyond_cash_or_turnover(body: Body, limit: Body, of_worlds: list[Body]) -> None:
    worlds = [{**world, "limits": own} for world, own in zip(body["worlds"], of_worlds, strict=False)]
    asked = read({**body, "worlds": worlds, "limits": limit})
    plan = plan_rebalancing(asked)
    budgets = [("", asked.limits), *((world.world_id, world.limits) for world in asked.worlds)]
    for world_id, own in budgets:
        deltas = sorted(
            (delta for delta in plan.deltas if world_id in ("", delta.world_id)),
            key=lambda delta: (["overlay", "scaling", "unwind"].index(delta.phase), not delta.reduces),
        )
        if own.cash is not None:
            cash, excused = Fraction(own.cash), False
            for delta in deltas:
                left = spend(cash, delta, asked)
                # Cash holds back no reduction, also where its price on a tick takes more than it releases.
                excused |= delta.phase == "scaling" and delta.reduces and left < cash
                assert (
                    left >= min(cash, Fraction()) if excused and not delta.reduces else excused or left >= 0
                )
                cash = left
        if own.max_turnover is not None:
            assert sum(abs(Fraction(delta.notional)) for delta in deltas) <= Fraction(own.max_turnover)


@CASES
@given(bodies(), limits())
def test_limits_hold_back_no_more_than_they_must(body: Body, limit: Body) -> None:
    free = plan_rebalancing(read(body))
    plan = plan_rebalancing(read({**body, "limits": limit}))
    asked = read(body)
    cash = None if limit["cash"] is None else Fraction(limit["cash"])
    for delta in free.deltas:
        if cash is not None:
            cash = min(cash, spend(cash, delta, asked))
    enough = (cash is None or cash >= 0) and (
        limit["max_turnover"] is None or free.turnover <= Decimal(limit["max_turnover"])
    )
    if enough:
        assert plan.deltas == free.deltas
    cut = {item.reason for item in plan.dropped} & {"cash", "turnover"}
    assert bool(cut) == (plan.deltas != free.deltas), "what is held back is listed"
    if limit["max_turnover"] is None:
        require_kept(asked, free, plan)


def require_kept(asked: MultiWorldRebalanceRequest, free: RebalancePlan, plan: RebalancePlan) -> None:
    """Check that cash cuts no reduction, and of orders that turn positions around what is beyond closing."""
    ordered = {place(delta): delta for delta in plan.deltas}
    for delta in free.deltas:
        part = ordered.get(place(delta))
        if delta.phase == "scaling" and delta.reduces:
            assert part == delta, "cash holds back no reduction"
        elif delta.phase == "scaling" and delta.from_quantity * delta.to_quantity < 0:
            rules = Instruments(asked.instruments).find(delta.venue, delta.symbol)
            closing = abs(Fraction(delta.from_quantity)) // Fraction(rules.lot) * Fraction(rules.lot)
            if closing * Fraction(delta.mark) < Fraction(rules.min_trade_notional):
                closing = Fraction()
            left = Fraction(part.quantity if part else 0) * (1 if delta.quantity > 0 else -1)
            assert closing <= left <= abs(Fraction(delta.quantity)), "cash holds back no closing"


@CASES
@given(st.integers(1, 400), st.integers(1, 400), thousandths(20), instruments(), st.integers(-50, 300))
def test_cash_holds_back_no_closing_of_an_order_that_turns_a_position_around(
    more: int, short: int, after: str, rules: Body, cash: int
) -> None:
    worlds = {"a": ("0.5", "0.5", {"s": ("0.01", "0"), "t": ("0.01", after)})}
    positions = [f"a/s X.V {Decimal(short + more) / 10} @ 9.8", f"a/t X.V {Decimal(-short) / 10} @ 9.8"]
    free = request(worlds, positions, instruments=rules)
    limited = request(worlds, positions, instruments=rules, limits={"cash": str(cash)})
    require_kept(free, plan_rebalancing(free), plan_rebalancing(limited))


@CASES
@given(bodies(), limits())
def test_sums_are_exact_and_quantities_are_whole_lots(body: Body, limit: Body) -> None:
    asked = read({**body, "limits": limit})
    with localcontext(prec=6):
        plan = plan_rebalancing(asked)
    rules = Instruments(asked.instruments)
    lists = [(plan.global_deltas, plan.global_dropped)]
    lists += [(world.deltas, world.dropped) for world in plan.per_world.values()]
    for deltas, dropped in lists:
        cut: defaultdict[tuple[str, ...], Fraction] = defaultdict(Fraction)
        for item in dropped:
            if item.reason in ("cash", "turnover"):
                cut[item.phase, item.world_id, item.strategy_id, item.venue, item.symbol] += Fraction(
                    item.quantity
                )
        for delta in deltas:
            quantity, lot = Fraction(delta.quantity), Fraction(rules.find(delta.venue, delta.symbol).lot)
            assert quantity % lot == 0
            assert Fraction(delta.to_quantity) == Fraction(delta.from_quantity) + quantity
            assert Fraction(delta.notional) == quantity * Fraction(delta.mark)
            assert sum(Fraction(part.quantity) for part in delta.parts) == quantity
            assert all(Fraction(part.quantity) % lot == 0 for part in delta.parts)
            missing = Fraction(delta.target_quantity) - Fraction(delta.to_quantity)
            assert abs(missing - cut[(delta.phase, *delta_key(delta))]) < lot
        assert all(sum(Fraction(part.quantity) for part in item.parts) == 0 for item in dropped)


@CASES
@given(bodies(), limits())
def test_orders_are_of_one_scope_and_reduce_only_where_they_reduce(body: Body, limit: Body) -> None:
    asked = read({**body, "limits": limit})
    plan = plan_rebalancing(asked)
    orders = orders_from_plan(plan, "run-1").orders
    assert {order.scope for order in orders} <= {asked.scope}
    assert len({order.client_order_id for order in orders}) == len(orders) == len(plan.deltas)
    rules = Instruments(asked.instruments)
    for order, delta in zip(orders, plan.deltas, strict=True):
        before, after = Fraction(delta.from_quantity), Fraction(delta.to_quantity)
        nearer = abs(after) < abs(before) and before * after >= 0
        able = rules.find(order.venue, order.symbol).supports_reduce_only
        assert order.reduce_only == (nearer and able)
        signed = order.quantity if order.side == "buy" else -order.quantity
        assert (signed, order.quantity > 0) == (delta.quantity, True)
    assert orders_from_plan(plan_rebalancing(asked), "run-1").orders == orders, "a retry has the same ids"
    others = {order.client_order_id for order in orders_from_plan(plan, "run-2").orders}
    assert not others & {order.client_order_id for order in orders}


@CASES
@given(bodies(scopes=("global",)), st.integers(0, 2_000_000), st.integers(0, 2_000_000), thousandths(1000))
def test_a_shared_account_stays_within_its_limits_or_is_refused(
    body: Body, gross: int, net_limit: int, headroom: str
) -> None:
    limit = {
        "max_gross_notional": str(gross),
        "max_net_notional": str(net_limit),
        "min_margin_headroom": headroom,
        "equity": "1000000",
    }
    asked = read({**body, "shared_account": limit})
    free = plan_rebalancing(read(body))
    rules = Instruments(asked.instruments)
    account: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
    prices = marks(asked)
    for key, quantity in held(asked).items():
        account[key[2:]] += quantity
    within = True
    for phase in ("overlay", "scaling", "unwind", "at the end"):
        deltas = [delta for delta in free.deltas if delta.phase == phase]
        for delta in deltas:
            prices[delta.venue, delta.symbol] = Fraction(delta.mark)
            account[delta.venue, delta.symbol] += Fraction(delta.quantity)
        notionals = {key: quantity * prices[key] for key, quantity in account.items()}
        margin = sum(abs(item) * Fraction(rules.find(*key).margin_rate) for key, item in notionals.items())
        if deltas or phase == "at the end":
            within &= (
                sum(map(abs, notionals.values())) <= gross
                and abs(sum(notionals.values())) <= net_limit
                and 1 - margin / 1_000_000 >= Fraction(headroom)
            )
    if within:
        assert plan_rebalancing(asked).deltas == free.deltas
    else:
        with pytest.raises(QmtlError, match="E_SHARED_ACCOUNT_POLICY"):
            plan_rebalancing(asked)
