"""Targets over bars: orders, fills, positions, cash and equity."""

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmtl_sdk import QmtlError
from qmtl_sdk.brokerage.fills import MarketBar
from qmtl_sdk.brokerage.models import ExecutionModel, FillModel
from qmtl_sdk.brokerage.orders import SimulatedFill
from qmtl_sdk.brokerage.simulation import CloseEvent, Simulation, close_events, market_bars
from qmtl_sdk.brokerage.targets import CloseTarget, CloseUnit, units_of
from qmtl_sdk.contracts.fees import PercentFee, TieredFee
from qmtl_sdk.data.bars import NS, Bars
from tests.support.frames import START, bars
from tests.support.pipeline import MINUTE, ohlcv

D = Decimal


def event(
    number: int, price: str, *targets: CloseTarget, volume: str = "1000", symbol: str = "A"
) -> CloseEvent:
    """The close of a flat bar."""
    value = D(price)
    bar = MarketBar(number * MINUTE * NS, value, value, value, value, D(volume))
    return CloseEvent((number + 1) * MINUTE * NS, {symbol: bar}, targets)


def want(value: str, unit: CloseUnit = "weight", symbol: str = "A", **options: Any) -> CloseTarget:
    return CloseTarget(symbol, unit, D(value), **options)


def run(cash: str, *events: CloseEvent, **model: Any) -> Simulation:
    execution = ExecutionModel(**model) if "fills" in model or model else ExecutionModel()
    return Simulation(D(cash), {"A": execution}).run(events)


def deltas(simulation: Simulation) -> list[str]:
    return [f"{fill.signed.normalize():f} at {fill.price.normalize():f}" for fill in simulation.fills]


LOT = FillModel(lot=1)


@pytest.mark.parametrize(
    ("unit", "value", "lot", "units"),
    [
        ("weight", "0.5", "1", "5"),
        ("weight", "0.55", "1", "5"),
        ("weight", "-0.59", "1", "-5"),
        ("weight", "0.333", "0.01", "3.33"),
        ("notional", "-250", "1", "-2"),
        ("units", "7.9", "1", "7"),
        ("units", "7.9", "0.1", "7.9"),
        ("weight", "0", "1", "0"),
    ],
)
def test_a_target_is_sized_in_whole_lots_toward_zero(
    unit: CloseUnit, value: str, lot: str, units: str
) -> None:
    assert units_of(want(value, unit), equity=D(1000), mark=D(100), lot=D(lot)) == D(units)


def test_an_order_is_decided_at_a_close_and_filled_in_the_next_bar() -> None:
    found = run(
        "1000", event(0, "100", want("0.5")), event(1, "110", want("0.5")), event(2, "120", want("0"))
    )
    assert deltas(found) == ["5 at 110"]
    assert [row.equity for row in found.rows] == [1000, 1000, 1050]
    assert [row.cash for row in found.rows] == [1000, 450, 450]
    assert [order.ticket.side for order in found.orders] == ["buy", "sell"]


def test_an_unchanged_target_keeps_its_units_while_prices_drift() -> None:
    path = [event(number, str(100 + 10 * number), want("0.5")) for number in range(6)]
    assert deltas(run("1000", *path)) == ["5 at 110"]


def test_a_change_of_target_is_sized_by_the_equity_of_that_close() -> None:
    found = run(
        "1000",
        event(0, "100", want("1")),
        event(1, "100", want("1")),
        event(2, "200", want("0.5")),
        event(3, "200"),
        fills=LOT,
    )
    assert deltas(found) == ["10 at 100", "-5 at 200"]  # half of 2000 at 200


def test_a_fixed_notional_is_not_sized_by_equity() -> None:
    found = run(
        "1000",
        event(0, "100", want("500", "notional")),
        event(1, "200"),
        event(2, "200", want("400", "notional")),
        event(3, "200"),
    )
    assert deltas(found) == ["5 at 200", "-3 at 200"]


def test_what_is_not_reached_is_ordered_again() -> None:
    """An IOC order gets a share of the volume; the rest is ordered at the next close."""
    path = [event(number, "100", want("1"), volume="40") for number in range(5)]
    found = run("1000", *path, time_in_force="IOC", fills=FillModel(volume_share="0.1"))
    assert deltas(found) == ["4 at 100", "4 at 100", "2 at 100"]
    assert [order.state.value for order in found.orders] == ["cancelled", "cancelled", "filled"]


def test_a_new_target_replaces_the_open_order() -> None:
    """4 of 10 are bought when the target becomes -0.2: the rest is cancelled and 6 are sold."""
    found = run(
        "1000",
        event(0, "100", want("1")),
        event(1, "100", want("-0.2"), volume="40"),
        event(2, "100", volume="1000"),
        fills=FillModel(volume_share="0.1"),
    )
    assert deltas(found) == ["4 at 100", "-6 at 100"]
    assert [order.state.value for order in found.orders] == ["cancelled", "filled"]
    assert found.account.position("A") == -2


def test_a_limit_order_waits_at_its_offset() -> None:
    found = run(
        "1000",
        event(0, "100", want("0.5")),
        event(1, "100", want("0.5")),
        event(2, "98", want("0.5")),
        order_type="limit",
        limit_offset_bps=100,
    )
    assert deltas(found) == ["5 at 98"]  # the limit is 99, and the bar opens beyond it
    assert len(found.orders) == 1


def test_nothing_is_ordered_while_a_target_may_not_be_traded() -> None:
    shut = want("1", tradable=False)
    found = run(
        "1000", event(0, "100", shut), event(1, "100", shut), event(2, "100", want("1")), event(3, "100")
    )
    assert [fill.at // MINUTE // NS for fill in found.fills] == [3]


def test_a_raw_quantity_is_an_order_each_time() -> None:
    found = run("1000", *[event(number, "100", want("-2", "quantity")) for number in range(3)], fills=LOT)
    assert deltas(found) == ["-2 at 100", "-2 at 100"]


def test_a_rejected_order_changes_nothing() -> None:
    model = FillModel(max_quantity=3)
    found = run(
        "1000", event(0, "100", want("0.5")), event(1, "100", want("0.3")), event(2, "100"), fills=model
    )
    assert deltas(found) == ["3 at 100"]
    assert [order.state.value for order in found.orders] == ["rejected", "filled"]
    assert "rejects more than 3" in found.orders[0].reason


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Simulation(D(0)), "the account begins with 0"),
        (
            lambda: run("1000", event(0, "0", want("0.5"))),
            "A has a price of 0, at which no target can be sized",
        ),
        (lambda: list(close_events({}, [(0, want("0.5"))])), "there are no bars of A"),
    ],
)
def test_a_mistake_is_one_clear_error(make: Any, said: str) -> None:
    with pytest.raises(QmtlError) as caught:
        make()
    assert caught.value.code == "E_EXECUTION"
    assert said in str(caught.value)


def test_bars_without_prices_of_their_own_are_flat_at_the_close() -> None:
    data = bars([100.25, float("nan")])
    first, missing = market_bars(data)
    assert (first.open, first.high, first.low, first.close, first.volume) == (*[D("100.25")] * 4, None)
    assert missing.open is missing.close is None
    found = list(market_bars(ohlcv([100.0, 102.0])))[1]
    assert [found.open, found.high, found.low, found.close] == [D("100"), D("103.02"), D("99"), D("102")]


CLOSES = st.lists(st.integers(80, 125).map(lambda n: n / 1.0), min_size=6, max_size=25)
TARGETS = st.integers(-10, 10).map(lambda n: D(n) / 10)
TIERS = TieredFee(tiers=[{"traded": 0, "bps": 9}, {"traded": 70_000, "bps": 4}])
MODELS = st.sampled_from(
    [
        ExecutionModel(),
        ExecutionModel(
            fills=FillModel(volume_share="0.003", slippage_bps=3, lot="0.1", fees=PercentFee(bps=7))
        ),
        ExecutionModel(order_type="limit", limit_offset_bps=40, time_in_force="DAY"),
        ExecutionModel(fills=FillModel(fees=TIERS)),
        ExecutionModel(time_in_force="IOC", fills=FillModel(volume_share="0.002", lot=1)),
        ExecutionModel(time_in_force="FOK", fills=FillModel(volume_share="0.02", price="mid")),
    ]
)


@st.composite
def scenarios(
    draw: st.DrawFn,
) -> tuple[dict[str, Bars], list[tuple[int, CloseTarget]], dict[str, ExecutionModel]]:
    data: dict[str, Bars] = {}
    targets: list[tuple[int, CloseTarget]] = []
    models: dict[str, ExecutionModel] = {}
    for symbol in "ABC":
        data[symbol] = ohlcv(draw(CLOSES))
        models[symbol] = draw(MODELS)
        for close in data[symbol].closes.tolist():
            if draw(st.integers(0, 2)):
                unit = draw(st.sampled_from(["weight", "weight", "notional", "units"]))
                scale = {"weight": 1, "notional": 20_000, "units": 300}[unit]
                tradable = bool(draw(st.integers(0, 5)))
                targets.append((close, CloseTarget(symbol, unit, draw(TARGETS) * scale, tradable=tradable)))
    return data, targets, models


@settings(max_examples=120, deadline=None)
@given(scenarios(), st.randoms(use_true_random=False))
def test_what_always_holds_of_a_simulation(scenario: Any, random: Any) -> None:
    data, targets, models = scenario
    whole = Simulation(D(100_000), models).run(close_events(data, targets))
    stepped = Simulation(D(100_000), models)
    for one in close_events(data, targets):
        stepped.step(one)
    assert (stepped.fills, stepped.rows) == (whole.fills, whole.rows)
    paid = sum((fill.signed * fill.price + fill.fee for fill in whole.fills), D(0))
    assert whole.account.cash + paid == 100_000
    last = whole.rows[-1]
    marks = {symbol: D(repr(float(found.columns["close"][-1]))) for symbol, found in data.items()}
    held = sum((position * marks[symbol] for symbol, position in last.positions.items()), D(0))
    assert last.equity == last.cash + held
    for order in whole.orders:
        assert order.filled <= order.ticket.quantity
        assert all(fill.at >= order.ticket.placed_at for fill in order.fills)
    ids = [order.ticket.order_id for order in whole.orders]
    assert len(set(ids)) == len(ids)
    # Whatever the order in which symbols are passed: the first by name is the first to reach the next tier.
    random.shuffle(targets)
    mixed = dict(random.sample(sorted(data.items()), len(data)))
    again = Simulation(D(100_000), models).run(close_events(mixed, targets))
    assert (again.fills, again.rows) == (whole.fills, whole.rows)


def traded(fill: SimulatedFill) -> tuple[Any, ...]:
    """A fill without its fee, whose tier depends on all that the account trades."""
    return (fill.fill_id, fill.side, fill.quantity, fill.price, fill.at)


@settings(max_examples=60, deadline=None)
@given(scenarios())
def test_unrelated_targets_change_no_fill(scenario: Any) -> None:
    data, targets, models = scenario
    fixed = [(at, one) for at, one in targets if one.unit != "weight"]
    together = Simulation(D(100_000), models).run(close_events(data, fixed)).fills
    for symbol, found in data.items():
        own = [(at, one) for at, one in fixed if one.symbol == symbol]
        alone = Simulation(D(100_000), models).run(close_events({symbol: found}, own)).fills
        assert list(map(traded, alone)) == [traded(fill) for fill in together if fill.symbol == symbol]


@settings(max_examples=60, deadline=None)
@given(CLOSES, st.lists(TARGETS, min_size=25, max_size=25))
def test_at_rest_a_position_is_its_target_within_a_lot(closes: list[float], weights: list[Decimal]) -> None:
    """Full fills: one bar after the decision, the position is what the target was worth then."""
    data = ohlcv(closes)
    targets = [
        (close, CloseTarget("A", "weight", weight))
        for close, weight in zip(data.closes.tolist(), weights, strict=False)
    ]
    found = Simulation(D(100_000), {"A": ExecutionModel(fills=LOT)}).run(close_events({"A": data}, targets))
    sized, last = D(0), None
    for row, (_, target), price, after in zip(found.rows, targets, closes, found.rows[1:], strict=False):
        if target.value != last:
            sized, last = int(target.value * row.equity / D(repr(price))) * D(1), target.value
        assert after.positions.get("A", D(0)) == sized


def test_finer_bars_fill_what_a_coarser_target_decided() -> None:
    """Targets of an hour, bars of a minute: the first minute after the close fills."""
    minutes = bars(list(np.linspace(100, 160, 121)), 60, START // (3600 * NS) * 3600 * NS)
    hour = int(minutes.ts[0]) + 3600 * NS
    found = Simulation(D(1000)).run(close_events({"A": minutes}, [(hour, want("0.5"))]))
    assert [fill.at for fill in found.fills] == [hour]
