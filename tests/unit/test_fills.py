"""What a simulated venue makes of an order: worked tables of fills and fees, and what always holds."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmtl_sdk import QmtlError
from qmtl_sdk.brokerage.account import SimulatedAccount
from qmtl_sdk.brokerage.fees import fee_of
from qmtl_sdk.brokerage.fills import MarketBar, place, replay, work, work_all
from qmtl_sdk.brokerage.models import ExecutionModel, FillModel, as_decimal
from qmtl_sdk.brokerage.orders import OrderTicket, SimulatedFill, WorkingOrder
from qmtl_sdk.contracts.fees import MakerTakerFee, PercentFee, PerShareFee, Tier, TieredFee
from qmtl_sdk.data.bars import NS
from tests.support.pipeline import MINUTE, market_bar

D = Decimal
PLACED = 10 * MINUTE * NS
FREE = FillModel()


def ticket(text: str, order_id: str = "order-1", symbol: str = "A", placed_at: int = PLACED) -> OrderTicket:
    """An order in words: `buy 100`, `sell 5 at 99 IOC`."""
    side, quantity, *rest = text.split()
    limit = D(rest[1]) if rest[:1] == ["at"] else None
    last = rest[-1] if rest and rest[-1].isupper() else "GTC"
    order_type = "market" if limit is None else "limit"
    return OrderTicket(order_id, symbol, side, D(quantity), placed_at, order_type, limit, last)  # type: ignore[arg-type]


def fills_of(order: WorkingOrder) -> list[str]:
    return [
        f"{fill.quantity.normalize():f} at {fill.price.normalize():f} in {fill.at // MINUTE // NS}"
        + " maker" * fill.maker
        for fill in order.fills
    ]


BAR = "100 102 97 101"
WORKED: list[tuple[str, list[tuple[int, str, str | None]], dict[str, Any], list[str], str]] = [
    # a market order fills at the next bar's open or mid, with slippage against it
    ("buy 5", [(10, BAR, None)], {}, ["5 at 100 in 10"], "filled"),
    ("sell 5", [(10, BAR, None)], {}, ["5 at 100 in 10"], "filled"),
    ("buy 5", [(10, BAR, None)], {"price": "mid"}, ["5 at 99.5 in 10"], "filled"),
    ("buy 5", [(10, BAR, None)], {"slippage_bps": 25}, ["5 at 100.25 in 10"], "filled"),
    ("sell 5", [(10, BAR, None)], {"slippage_bps": 25}, ["5 at 99.75 in 10"], "filled"),
    ("sell 5", [(10, BAR, None)], {"slippage_bps": 100, "price": "mid"}, ["5 at 98.505 in 10"], "filled"),
    # never in a bar that opened before the order was placed, and not in one without a price
    ("buy 5", [(9, BAR, None)], {}, [], "open"),
    ("buy 5", [(9, BAR, None), (10, "- - - -", None), (11, BAR, None)], {}, ["5 at 100 in 11"], "filled"),
    # a share of the volume, over several bars
    ("buy 100", [(10, BAR, "500")], {"volume_share": "0.1"}, ["50 at 100 in 10"], "open"),
    (
        "buy 100",
        [(10, BAR, "500"), (11, "103 103 103 103", "300"), (12, "104 104 104 104", "9000")],
        {"volume_share": "0.1"},
        ["50 at 100 in 10", "30 at 103 in 11", "20 at 104 in 12"],
        "filled",
    ),
    ("buy 100", [(10, BAR, "57")], {"volume_share": "0.1", "lot": 1}, ["5 at 100 in 10"], "open"),
    ("buy 2.5", [(10, BAR, "57")], {"volume_share": "0.1", "lot": 1}, ["2.5 at 100 in 10"], "filled"),
    ("buy 100", [(10, BAR, "0"), (11, BAR, None)], {"volume_share": 1}, [], "open"),
    # a limit fills only in a bar that reaches it; at the open where the bar opens beyond it
    ("buy 5 at 98", [(10, BAR, None)], {}, ["5 at 98 in 10 maker"], "filled"),
    ("buy 5 at 97", [(10, BAR, None)], {}, ["5 at 97 in 10 maker"], "filled"),
    ("buy 5 at 96.99", [(10, BAR, None)], {}, [], "open"),
    ("buy 5 at 101", [(10, BAR, None)], {}, ["5 at 100 in 10"], "filled"),
    ("buy 5 at 100", [(10, BAR, None)], {"slippage_bps": 25}, ["5 at 100 in 10"], "filled"),
    (
        "buy 5 at 98",
        [(10, BAR, None)],
        {"slippage_bps": 25, "price": "mid"},
        ["5 at 98 in 10 maker"],
        "filled",
    ),
    ("sell 5 at 102", [(10, BAR, None)], {}, ["5 at 102 in 10 maker"], "filled"),
    ("sell 5 at 102.01", [(10, BAR, None)], {}, [], "open"),
    ("sell 5 at 99", [(10, BAR, None)], {}, ["5 at 100 in 10"], "filled"),
    (
        "buy 90 at 98",
        [(10, BAR, "500"), (11, "99 99 98.5 99", "500"), (12, "95 99 95 99", "500")],
        {"volume_share": "0.1"},
        ["50 at 98 in 10 maker", "40 at 95 in 12"],
        "filled",
    ),
    # immediate or cancel, fill or kill
    (
        "buy 100 IOC",
        [(10, BAR, "500"), (11, BAR, "500")],
        {"volume_share": "0.1"},
        ["50 at 100 in 10"],
        "cancelled",
    ),
    ("buy 5 at 96 IOC", [(10, BAR, None), (11, "95 95 95 95", None)], {}, [], "cancelled"),
    ("buy 5 IOC", [(9, BAR, None), (10, "- - - -", None), (11, BAR, None)], {}, ["5 at 100 in 11"], "filled"),
    ("buy 100 FOK", [(10, BAR, "500"), (11, BAR, "5000")], {"volume_share": "0.1"}, [], "cancelled"),
    ("buy 50 FOK", [(10, BAR, "500")], {"volume_share": "0.1"}, ["50 at 100 in 10"], "filled"),
    ("buy 5 at 96 FOK", [(10, BAR, None)], {}, [], "cancelled"),
    # a day order expires with the UTC day of its first bar; minute 1440 is the next day
    (
        "buy 100 DAY",
        [(1438, BAR, "500"), (1439, BAR, "100"), (1440, BAR, "500")],
        {"volume_share": "0.1"},
        ["50 at 100 in 1438", "10 at 100 in 1439"],
        "expired",
    ),
    ("buy 5 DAY", [(1440, BAR, None)], {}, ["5 at 100 in 1440"], "filled"),
    ("buy 5 at 96", [(10, BAR, None), (1440, "96 96 96 96", None)], {}, ["5 at 96 in 1440"], "filled"),
    # rejects on demand
    ("buy 5", [(10, BAR, None)], {"reject_symbols": ["A"]}, [], "rejected"),
    ("buy 5", [(10, BAR, None)], {"max_quantity": 4}, [], "rejected"),
    ("buy 4", [(10, BAR, None)], {"max_quantity": 4}, ["4 at 100 in 10"], "filled"),
]


@pytest.mark.parametrize(("words", "bars", "model", "fills", "state"), WORKED)
def test_worked_orders(
    words: str,
    bars: list[tuple[int, str, str | None]],
    model: dict[str, Any],
    fills: list[str],
    state: str,
) -> None:
    found = replay(ticket(words), [market_bar(*bar) for bar in bars], FillModel(**model))
    assert (fills_of(found), found.state.value) == (fills, state)


def fill(quantity: str, price: str, fee: str = "0", maker: bool = False) -> SimulatedFill:
    return SimulatedFill("f", "A", "buy", D(quantity), D(price), PLACED, maker, D(fee))


TIERS = TieredFee(tiers=[{"traded": 0, "bps": 10}, {"traded": 1000, "bps": 5}, {"traded": 5000, "bps": 1}])


@pytest.mark.parametrize(
    ("fees", "new", "earlier", "traded", "fee"),
    [
        (PercentFee(bps=10), fill("3", "100"), [], "0", "0.3"),
        (PercentFee(), fill("3", "100"), [], "0", "0"),
        (PercentFee(bps="0.1"), fill("0.00000001", "1"), [], "0", "0"),
        (PerShareFee(per_share="0.005", minimum=1), fill("100", "50"), [], "0", "1"),
        (PerShareFee(per_share="0.005", minimum=1), fill("300", "50"), [], "0", "1.5"),
        (PerShareFee(per_share="0.005", minimum=1), fill("100", "50"), [fill("100", "50", "1")], "0", "0"),
        (PerShareFee(per_share="0.005", minimum=1), fill("200", "50"), [fill("100", "50", "1")], "0", "0.5"),
        (MakerTakerFee(maker_bps=-1, taker_bps=5), fill("2", "100"), [], "0", "0.1"),
        (MakerTakerFee(maker_bps=-1, taker_bps=5), fill("2", "100", maker=True), [], "0", "-0.02"),
        (TIERS, fill("1", "100"), [], "0", "0.1"),
        (TIERS, fill("1", "100"), [], "999.99", "0.1"),
        (TIERS, fill("1", "100"), [], "1000", "0.05"),
        (TIERS, fill("1", "100"), [], "1000000", "0.01"),
    ],
)
def test_worked_fees(
    fees: Any, new: SimulatedFill, earlier: list[SimulatedFill], traded: str, fee: str
) -> None:
    assert fee_of(fees, new, earlier, D(traded)) == D(fee)


def test_orders_of_a_symbol_share_the_volume_by_age() -> None:
    model = FillModel(volume_share="0.1", fees=TIERS)
    orders = [place(ticket("buy 30", "first"), model), place(ticket("sell 30", "second"), model)]
    done = work_all(orders, market_bar(10, "100 100 100 100", "500"), model, D("0"))
    assert [fills_of(order) for order in done] == [["30 at 100 in 10"], ["20 at 100 in 10"]]
    assert [order.fills[0].fee for order in done] == [D("3"), D("1")]  # the second is in the next tier


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: FillModel(volume_share=1.5),
            "FillModel: volume_share: Input should be less than or equal to 1",
        ),
        (lambda: FillModel(slippage_bps=-1), "slippage_bps"),
        (lambda: FillModel(price="close"), "price"),
        (lambda: FillModel(lot=0), "lot"),
        (lambda: FillModel(slipage_bps=1), "slipage_bps"),
        (lambda: FillModel(fees={"kind": "flat"}), "fees"),
        (lambda: ExecutionModel(order_type="stop"), "order_type"),
        (
            lambda: ExecutionModel(limit_offset_bps=5),
            "ExecutionModel: limit_offset_bps is given for market orders; it needs order_type='limit' [E_EX",
        ),
        (lambda: PercentFee(5), "PercentFee: the value 5 has no name [E_EXECUTION] → name it: bps="),
        (lambda: Tier(0, 5), "Tier: the value 0 has no name [E_EXECUTION] → name it: traded=, bps="),
        (lambda: Tier(traded=-1, bps=5), "Tier: traded: Input should be greater than or equal to 0 [E_EXEC"),
        (lambda: ExecutionModel(time_in_force="GTD"), "time_in_force"),
        (
            lambda: TieredFee(tiers=[{"traded": 5, "bps": 1}]),
            "TieredFee: tiers begin at a traded notional of 0",
        ),
        (lambda: TieredFee(tiers=[]), "tiers"),
        (lambda: ticket("buy 0"), "has a quantity of 0"),
        (lambda: ticket("buy -3"), "has a quantity of -3"),
        (lambda: ticket("buy 1", symbol=""), "has no symbol"),
        (lambda: ticket("buy 1 at 0"), "has a limit price of 0"),
    ],
)
def test_a_mistake_is_one_clear_error(make: Any, said: str) -> None:
    with pytest.raises(QmtlError) as caught:
        make()
    assert caught.value.code == "E_EXECUTION"
    assert said in str(caught.value)


def test_equal_models_are_equal_parameters() -> None:
    written = ExecutionModel(fills=FillModel(slippage_bps="0.50", lot="1E-3", fees=PercentFee(bps=1)))
    other = ExecutionModel(
        fills=FillModel(slippage_bps=0.5, lot=0.001, fees={"kind": "percent", "bps": "1.0"})
    )
    assert written.params() == other.params()
    assert written.params()["fills"]["slippage_bps"] == "0.5"


AMOUNTS = st.decimals("0.000001", "9999", places=6)
PRICES = st.decimals("0.5", "500", places=3)


@st.composite
def bars(draw: st.DrawFn, count: int = 8) -> list[MarketBar]:
    found = []
    for number in range(count):
        prices = sorted(draw(st.lists(PRICES, min_size=4, max_size=4)))
        inner = draw(st.permutations(prices[1:3]))
        volume = draw(st.one_of(st.none(), st.decimals(0, 10_000, places=1)))
        opened = None if draw(st.integers(0, 9)) == 0 else inner[0]
        found.append(MarketBar((8 + number) * MINUTE * NS, opened, prices[3], prices[0], inner[1], volume))
    return found


@st.composite
def tickets(draw: st.DrawFn, order_id: str = "order", symbol: str = "A") -> OrderTicket:
    limit = draw(st.one_of(st.none(), PRICES))
    return OrderTicket(
        order_id,
        symbol,
        draw(st.sampled_from(["buy", "sell"])),
        draw(AMOUNTS),
        PLACED,
        "market" if limit is None else "limit",
        limit,
        draw(st.sampled_from(["GTC", "DAY", "IOC", "FOK"])),
    )


FEES = st.sampled_from(
    [
        PercentFee(bps="3.7"),
        PerShareFee(per_share="0.0051", minimum="1.01"),
        MakerTakerFee(maker_bps="-0.3", taker_bps="5.5"),
        TIERS,
    ]
)
MODELS = st.builds(
    FillModel,
    price=st.sampled_from(["open", "mid"]),
    slippage_bps=st.decimals(0, 200, places=2),
    volume_share=st.one_of(st.none(), st.decimals("0.001", 1, places=3)),
    lot=st.sampled_from([D("1"), D("0.01"), D("1E-12")]),
    fees=FEES,
)


@settings(max_examples=300, deadline=None)
@given(bars(), st.lists(tickets(), min_size=1, max_size=4), MODELS)
def test_what_always_holds_of_fills(
    path: list[MarketBar], wanted: list[OrderTicket], model: FillModel
) -> None:
    orders = [place(one, model) for one in wanted]
    account = SimulatedAccount(D("1000"))
    for bar in path:
        before, orders = orders, work_all(orders, bar, model, account.traded)
        new = [f for old, order in zip(before, orders, strict=True) for f in order.fills[len(old.fills) :]]
        for one in new:
            account = account.after(one)
        if model.volume_share is not None:
            assert sum(one.quantity for one in new) <= (bar.volume or 0) * model.volume_share
        assert all(one.at == bar.ts >= PLACED for one in new)
        for one in new:
            assert bar.low is not None
            assert bar.high is not None
            slip = model.slippage_bps / 10_000
            assert bar.low * (1 - slip) - D("1E-9") <= one.price <= bar.high * (1 + slip) + D("1E-9")
    for order in orders:
        limit, sign = order.ticket.limit_price, order.ticket.sign
        assert order.filled <= order.ticket.quantity
        assert (order.state.value == "filled") == (order.filled == order.ticket.quantity)
        assert all(limit is None or sign * one.price <= sign * limit for one in order.fills)
        if order.ticket.time_in_force == "FOK":
            assert order.filled in (0, order.ticket.quantity)
        if order.ticket.time_in_force in ("IOC", "FOK"):
            assert len(order.fills) <= 1
        assert [one.fill_id for one in order.fills] == [f"order/{n + 1}" for n in range(len(order.fills))]
    every = [one for order in orders for one in order.fills]
    paid = sum((one.signed * one.price + one.fee for one in every), D(0))
    assert account.cash + paid == 1000
    assert account.position("A") == sum((one.signed for one in every), D(0))
    assert (account.fees, account.traded) == (
        sum(f.fee for f in every),
        sum(f.quantity * f.price for f in every),
    )
    assert account.equity({"A": D("7.77")}) == account.cash + account.position("A") * D("7.77")


@settings(max_examples=100, deadline=None)
@given(bars(), tickets(), MODELS, st.integers(0, 8))
def test_a_replay_that_is_interrupted_makes_the_same_fills(
    path: list[MarketBar], wanted: OrderTicket, model: FillModel, cut: int
) -> None:
    """One that goes on from the order and its fills, and one that takes all bars."""
    half = replay(wanted, path[:cut], model)
    for bar in path[cut:]:
        half = work(half, bar, model)
    assert half == replay(wanted, path, model)


def test_money_is_exact_beyond_the_digits_of_a_context() -> None:
    big = fill("9999999999999999.999999999999", "9999999999999999.999999999999")
    account = SimulatedAccount(D("1")).after(big)
    assert str(account.traded) == "99999999999999999999999999980000.000000000000000000000001"
    assert str(account.cash) == "-99999999999999999999999999979999.000000000000000000000001"


def test_a_number_becomes_its_shortest_text() -> None:
    assert str(as_decimal(0.1)) == "0.1"
    assert as_decimal(1e-13) == 0
