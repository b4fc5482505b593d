"""Orders of a plan: sides, reduce-only, one scope, prices on ticks, and ids that a retry repeats."""

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from activities.allocation.orders import orders_from_plan, orders_from_world_plan
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.orders import Order, order_id_prefix
from qmtl_sdk.contracts.rebalance_plan import RebalanceOrders
from tests.support.rebalancing import Change, planned

HALF: dict[str, Change] = {"a": ("0.4", "0.2")}
DOUBLE: dict[str, Change] = {"a": ("0.2", "0.4")}
TWO: dict[str, Change] = {"a": ("0.4", "0.2"), "b": ("0.2", "0.4")}
ABLE = {"instruments": {"lot": "1", "supports_reduce_only": True}}
SHARED: dict[str, Any] = {
    "scope": "global",
    "shared_account": {
        "max_gross_notional": "1000",
        "max_net_notional": "1000",
        "min_margin_headroom": "0",
        "equity": "1000",
    },
}


@pytest.mark.parametrize(
    ("worlds", "position", "side", "quantity", "reduce_only"),
    [
        (HALF, "4", "sell", 2, True),
        (HALF, "-4", "buy", 2, True),
        (DOUBLE, "1", "buy", 1, False),
        (DOUBLE, "-1", "sell", 1, False),
        ({"a": ("0.2", "0")}, "3", "sell", 3, True),
    ],
)
def test_an_order_is_reduce_only_where_it_brings_the_position_nearer_to_zero(
    worlds: dict[str, Change], position: str, side: str, quantity: int, reduce_only: bool
) -> None:
    text = [f"a/s X {position} @ 100"]
    (order,) = orders_from_plan(planned(worlds, text, **ABLE), "r").orders
    assert (order.side, order.quantity, order.reduce_only) == (side, quantity, reduce_only)
    (order,) = orders_from_plan(planned(worlds, text), "r").orders
    assert not order.reduce_only, "the venue does not know it"


def test_an_order_that_crosses_zero_is_not_reduce_only() -> None:
    worlds: dict[str, Change] = {"a": ("0.4", "0.4", {"s": ("0.1", "0"), "t": ("0.1", "0.2")})}
    plan = planned(worlds, ["a/s X 5 @ 10", "a/t X -3 @ 10"], **ABLE)
    (order,) = orders_from_plan(plan, "r").orders
    assert (order.side, order.quantity, order.reduce_only) == ("sell", 8, False)


def test_reductions_come_first() -> None:
    plan = planned(TWO, ["b/s X 4 @ 10", "a/s Y 4 @ 10", "a/s Z -4 @ 10"], **SHARED)
    orders = orders_from_plan(plan, "r").orders
    assert [(order.symbol, order.side) for order in orders] == [("Y", "sell"), ("Z", "buy"), ("X", "buy")]


def test_a_submission_is_of_one_scope() -> None:
    positions = ["a/s X 4 @ 10", "b/s X 4 @ 10"]
    shared = planned(TWO, positions, **SHARED)
    apart = planned(TWO, positions)
    with pytest.raises(QmtlError) as refused:
        orders_from_world_plan(shared, "a", "r")
    assert refused.value.code == "E_ORDER_SCOPE"
    of_a = orders_from_world_plan(apart, "a", "r").orders
    assert [(order.world_id, order.side, order.quantity) for order in of_a] == [("a", "sell", 2)]
    of_all = orders_from_plan(shared, "r").orders
    assert [(order.world_id, order.side, order.quantity) for order in of_all] == [("", "buy", 2)]
    with pytest.raises(ValidationError, match="global and world"):
        RebalanceOrders(orders=(*of_a, *of_all))
    with pytest.raises(ValidationError, match="same client_order_id"):
        RebalanceOrders(orders=(*of_a, *of_a))
    with pytest.raises(QmtlError, match="no world c"):
        orders_from_world_plan(apart, "c", "r")


def test_ids_tell_runs_worlds_venues_symbols_and_sides_apart_and_nothing_else() -> None:
    def ids(run_id: str, worlds: dict[str, Change], *positions: str) -> set[str]:
        return {
            order.client_order_id for order in orders_from_plan(planned(worlds, positions), run_id).orders
        }

    first = ids("r1", HALF, "a/s X 4 @ 10")
    assert ids("r1", HALF, "a/t X 40 @ 11") == first, "another quantity in the same run is the same order"
    others = [
        ids("r2", HALF, "a/s X 4 @ 10"),
        ids("r1", {"b": ("0.4", "0.2")}, "b/s X 4 @ 10"),
        ids("r1", HALF, "a/s Y 4 @ 10"),
        ids("r1", HALF, "a/s X.V 4 @ 10"),
        ids("r1", HALF, "a/s X -4 @ 10"),
    ]
    assert len(set.union(first, *others)) == 6


def test_orders_of_a_run_with_an_overlay_have_their_own_ids() -> None:
    overlay = {"instrument_by_world": {"a": "P"}, "price_by_symbol": {"P": "10"}}
    plan = planned(HALF, ["a/s X 4 @ 10"], mode="hybrid", overlay=overlay)
    orders = orders_from_plan(plan, "r").orders
    assert [order.side for order in orders] == ["sell", "sell", "buy"]
    assert len({order.client_order_id for order in orders}) == 3


def test_an_order_of_the_order_log_can_carry_the_id() -> None:
    (order,) = orders_from_plan(planned(HALF, ["a/s X 4 @ 10"]), "r").orders
    Order(
        order_id=order.client_order_id,
        world_id=order.world_id,
        strategy_id="rebalancing",
        execution_domain="dryrun",
        epoch=1,
        symbol=order.symbol,
        side=order.side,
        quantity=order.quantity,
        reference_price=order.reference_price,
        time_in_force=order.time_in_force,
        reduce_only=order.reduce_only,
    )
    (of_strategy,) = orders_from_plan(planned(HALF, ["a/s X 4 @ 10"], scope="strategy"), "r").orders
    assert of_strategy.client_order_id.startswith(order_id_prefix("a", "s"))


@pytest.mark.parametrize(
    ("mark", "tick", "price"),
    [
        ("10.07", "0.05", "10.05"),
        ("10.08", "0.05", "10.1"),
        ("10.05", "0.05", "10.05"),
        ("10.07", None, "10.07"),
        ("0.01", "0.05", "0.01"),
        ("9e15", "6e15", "9e15"),
    ],
)
def test_the_reference_price_is_the_tick_nearest_to_the_mark(mark: str, tick: str | None, price: str) -> None:
    plan = planned(HALF, [f"a/s X 4 @ {mark}"], instruments={"lot": "1", "tick": tick})
    (order,) = orders_from_plan(plan, "r").orders
    assert order.reference_price == Decimal(price)


def test_a_venue_gives_its_time_in_force_and_its_costs() -> None:
    venue = {"venue": "V", "time_in_force": "IOC", "cost_bps": "12.5"}
    plan = planned(HALF, ["a/s X 4 @ 10", "a/s X.V 4 @ 10"], instruments={"lot": "1", "venues": [venue]})
    orders = orders_from_plan(plan, "r").orders
    assert [(order.venue, order.time_in_force) for order in orders] == [("", "GTC"), ("V", "IOC")]
    assert [delta.cost for delta in plan.deltas] == [0, Decimal("0.025")]


@pytest.mark.parametrize(
    ("positions", "worlds", "ordered", "parts"),
    [
        # q would give 2 of its 1.5
        (["a/q X 1.5 @ 10", "a/r X 3.2 @ 10"], {"q": "0", "r": "0.2"}, [1], {"q": -1, "r": 2}),
        (["a/q X -1.5 @ 10", "a/r X -3.2 @ 10"], {"q": "0", "r": "0.2"}, [-1], {"q": 1, "r": -2}),
        # p and q would give 2 together, 1 of the half that each has: nothing is crossed
        (
            ["a/p X 0.5 @ 10", "a/q X 0.5 @ 10", "a/r X 1 @ 10"],
            {"p": "0", "q": "0", "r": "0.2"},
            [],
            {},
        ),
        # who can give a lot gives it, though its remainder is smaller
        (
            ["a/p X 0.6 @ 10", "a/q X 2.8 @ 10", "a/r X 2 @ 10"],
            {"p": "0", "q": "0.05", "r": "0.2"},
            [],
            {"q": -2, "r": 2},
        ),
        # an order is not held back
        (["a/p X 1.5 @ 10", "a/q X 0.5 @ 10"], {"p": "0", "q": "0"}, [-2], {"p": -2}),
    ],
)
def test_what_strategies_cross_turns_no_position_around(
    positions: list[str], worlds: dict[str, str], ordered: list[int], parts: dict[str, int]
) -> None:
    own = {name: ("0.1", after) for name, after in worlds.items()}
    plan = planned({"a": ("0.4", "0.4", own)}, positions)
    assert [delta.quantity for delta in plan.deltas] == ordered
    found = {part.strategy_id: part.quantity for item in (*plan.deltas, *plan.dropped) for part in item.parts}
    assert found == parts


def test_strategies_cross_what_nets_out() -> None:
    plan = planned(DOUBLE, ["a/s X 7 @ 10", "a/t X -4 @ 10"])
    (delta,) = plan.deltas
    assert {part.strategy_id: part.quantity for part in delta.parts} == {"s": 7, "t": -4}
    (dropped,) = planned(DOUBLE, ["a/s X 4 @ 10", "a/t X -4 @ 10"]).dropped
    assert {part.strategy_id: part.quantity for part in dropped.parts} == {"s": 4, "t": -4}
    (delta,) = planned(DOUBLE, ["a/s X 7 @ 10", "a/t X -4 @ 10"], limits={"max_turnover": "10"}).deltas
    assert {part.strategy_id: part.quantity for part in delta.parts} == {"s": 5, "t": -4}
