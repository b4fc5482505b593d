"""From a target to an order: what a target means in units, and what the position lacks."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.fence.sizing import (
    SizedTarget,
    SymbolState,
    TargetDecision,
    WorkingQuantity,
    WorldSizing,
    decide_target,
)
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.targets import Target
from qmtl_sdk.contracts.worlds import WorldSpec
from tests.support.desk import new_order_id

D = Decimal
BAR = datetime(2024, 1, 2, tzinfo=UTC)
OPENED = "2024-01-02T00:00:00+00:00"
STORED = "2024-01-02T09:00:00.000000+00:00"
FLAT = SymbolState(None)


def target(value: str, unit: str = "weight", at: datetime = BAR, price: str | None = "100") -> Target:
    return Target.model_validate(
        {
            "order_id": new_order_id("w", "s"),
            "world_id": "w",
            "strategy_id": "s",
            "session_id": "x",
            "execution_domain": "dryrun",
            "epoch": 1,
            "symbol": "AAPL",
            "reference_price": price,
            "decided_at": at,
            "unit": unit,
            "value": value,
        }
    )


def world(capital: str | None = "10000", **rules: Any) -> WorldSizing:
    found = {"amount": capital} if capital else None
    return WorldSizing(
        WorldSpec.model_validate({"world": "w", "capital": found, "instruments": {"lot": "1", **rules}})
    )


def decide(
    asked: Target,
    held: SymbolState = FLAT,
    weight: str = "1",
    of: WorldSizing | None = None,
    opened_at: str = OPENED,
) -> TargetDecision:
    return decide_target(asked, held, D(weight), of or world(), "paper", opened_at)


def ordered(decision: TargetDecision) -> Decimal:
    assert decision.refusal is None
    return decision.order.signed if decision.order else D(0)


def working(*quantities: str, unsent: bool = False) -> tuple[WorkingQuantity, ...]:
    return tuple(WorkingQuantity(f"o{n}", D(value), unsent) for n, value in enumerate(quantities))


@pytest.mark.parametrize(
    ("asked", "weight", "held", "missing"),
    [
        (target("1"), "1", FLAT, "100"),  # all of 10,000 at 100
        (target("1"), "0.5", FLAT, "50"),
        (target("0.5"), "0.333", FLAT, "16"),  # 16.65 units, toward zero
        (target("-0.5"), "0.333", FLAT, "-16"),
        (target("0.1"), "0.1", FLAT, "1"),
        (target("0"), "1", SymbolState(None, D(7)), "-7"),
        (target("1"), "1", SymbolState(None, D(40)), "60"),  # it starts in the middle
        (target("1"), "1", SymbolState(None, D(100)), "0"),
        (target("-1"), "1", SymbolState(None, D(100)), "-200"),
        (target("1"), "1", SymbolState(None, D(40), working=working("30")), "30"),
        (target("1"), "1", SymbolState(None, D(40), working=working("30", "30")), "0"),
        (target("30", "units"), "1", FLAT, "30"),
        (target("30", "units"), "0.5", SymbolState(None, D(20)), "-5"),
        (target("-30.7", "units"), "1", FLAT, "-30"),
        (target("2550", "notional"), "1", FLAT, "25"),
        (target("2550", "notional"), "0.2", FLAT, "5"),
        (
            target("1000", "notional", price=None),
            "1",
            SymbolState(None, D(3), mark=D(50)),
            "17",
        ),  # at the mark
        (target("5", "units", price=None), "1", FLAT, "5"),  # needs no price
        (target("1"), "0", SymbolState(None, D(9)), "-9"),  # a weight of 0 holds nothing
    ],
)
def test_an_order_is_what_a_position_lacks_of_its_target(
    asked: Target, weight: str, held: SymbolState, missing: str
) -> None:
    assert ordered(decide(asked, held, weight)) == D(missing)


@pytest.mark.parametrize(
    ("asked", "of", "refused"),
    [
        (target("1"), world(None), Refusal.NO_CAPITAL),
        (target("1", price=None), world(), Refusal.NO_PRICE),
        (target("9", "notional", price=None), world(None), Refusal.NO_PRICE),
        (target("9999999999999999", "units"), world(lot="0.01"), None),
    ],
)
def test_a_target_that_cannot_be_sized_is_refused(
    asked: Target, of: WorldSizing, refused: Refusal | None
) -> None:
    assert decide(asked, of=of).refusal is refused


def test_what_is_missing_may_be_too_much_for_one_order() -> None:
    held = SymbolState(None, D(-9_000_000_000_000_000))
    assert decide(target("9000000000000000", "units"), held).refusal is Refusal.QUANTITY_LIMIT


def sized(asked: Target, **fields: Any) -> SizedTarget:
    size = decide(asked).size
    assert size is not None
    return replace(size, updated_at=STORED, **fields)


def test_a_price_that_drifts_resizes_nothing_but_weight_capital_and_target_do() -> None:
    held = SymbolState(sized(target("1")), D(100))
    dearer = target("1", at=BAR + timedelta(days=1), price="125")
    assert ordered(decide(dearer, held)) == 0
    assert ordered(decide(dearer, held, weight="0.5")) == -60  # 10,000 × 0.5 / 125 = 40
    assert ordered(decide(dearer, held, of=world("20000"))) == 60  # 160
    assert ordered(decide(target("0.5", price="125"), held)) == -60
    assert ordered(decide(target("90", "units", price="125"), held)) == -10


def test_capital_resizes_only_what_is_a_share_of_it() -> None:
    held = SymbolState(sized(target("70", "units")), D(70))
    assert ordered(decide(target("70", "units"), held, of=world("20000"))) == 0
    assert ordered(decide(target("70", "units"), held, of=world(None))) == 0


def test_a_target_of_an_earlier_bar_comes_too_late_unless_its_session_is_new() -> None:
    held = SymbolState(sized(target("1", at=BAR + timedelta(days=1))), D(100))
    late = target("0")
    assert decide(late, held).refusal is Refusal.STALE_TARGET
    assert ordered(decide(late, held, opened_at="2024-01-02T09:00:01+00:00")) == -100


def test_orders_against_a_target_are_cancelled_before_anything_is_ordered() -> None:
    sent = SymbolState(None, D(0), working=working("100"))
    flat = decide(target("0"), sent)
    assert (flat.refusal, flat.cancel, flat.order) == (Refusal.OPEN_ORDERS, {"o0"}, None)
    unsent = SymbolState(None, D(0), working=working("100", unsent=True))
    flat = decide(target("0"), unsent)
    assert (ordered(flat), flat.cancel) == (0, {"o0"})
    short = decide(target("-1"), unsent)
    assert (ordered(short), short.cancel) == (-100, {"o0"})
    both = SymbolState(
        None, D(0), working=(*working("100", unsent=True), WorkingQuantity("p", D(-20), False))
    )
    assert (ordered(decide(target("-0.5"), both)), decide(target("-0.5"), both).cancel) == (-30, {"o0"})


def test_no_target_cancels_an_order_that_flattens() -> None:
    flattening = WorkingQuantity("f", D(-100), unsent=True, flattens=True)
    held = SymbolState(None, D(100), working=(flattening, *working("-5", unsent=True)))
    found = decide(target("1"), held)
    assert (found.refusal, found.cancel, found.order) == (Refusal.OPEN_ORDERS, {"o0"}, None)


def test_a_change_below_the_smallest_notional_waits_and_an_equal_one_does_not() -> None:
    of = world(min_trade_notional="500")
    held = SymbolState(None, D(96))
    assert ordered(decide(target("1"), held, of=of)) == 0
    assert ordered(decide(target("1"), SymbolState(None, D(95)), of=of)) == 5


def test_rules_of_a_symbol_stand_before_those_of_its_account() -> None:
    symbols = [{"symbol": "AAPL", "lot": "25", "time_in_force": "DAY", "supports_reduce_only": True}]
    of = world(venues=[{"venue": "paper", "lot": "5", "symbols": symbols}])
    order = decide(target("0.4"), SymbolState(None, D(100)), of=of).order
    assert order is not None
    assert (order.signed, order.time_in_force, order.reduce_only) == (-75, "DAY", True)
    across = decide(target("-0.5"), SymbolState(None, D(100)), of=of).order
    assert across is not None
    assert not across.reduce_only


def test_without_rules_a_lot_is_a_millionth() -> None:
    of = WorldSizing(WorldSpec.model_validate({"world": "w", "capital": {"amount": "100"}}))
    assert ordered(decide(target("1", price="70000"), of=of)) == D("0.001428")


amounts = st.decimals(-10_000, 10_000, places=3, allow_nan=False)


@settings(max_examples=1000)
@given(
    value=amounts,
    position=amounts,
    open_orders=st.lists(amounts.filter(bool), max_size=4),
    lot=st.sampled_from(["0.001", "0.5", "1", "7"]),
    weight=st.sampled_from(["0", "0.1", "0.333", "1"]),
)
def test_a_position_that_is_filled_is_within_a_lot_of_its_target(
    value: Decimal, position: Decimal, open_orders: list[Decimal], lot: str, weight: str
) -> None:
    of = world(lot=lot)
    asked = target(str(value), "units")
    held = SymbolState(None, position, working=working(*map(str, open_orders), unsent=True))
    decision = decide(asked, held, weight, of)
    left = sum((item.quantity for item in held.working if item.order_id not in decision.cancel), D(0))
    reached = position + left + ordered(decision)
    in_whole_lots = (position + left) % D(lot) == 0
    assert abs(reached - value * D(weight)) < D(lot) * (1 if in_whole_lots else 2)
    settled = SymbolState(decision.size, reached)
    assert ordered(decide(asked, settled, weight, of)) == 0
