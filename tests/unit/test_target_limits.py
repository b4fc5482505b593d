"""Limits and hours of target weights, the same in batch, bar by bar and live."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmtl_sdk import Node, QmtlError, StreamInput
from qmtl_sdk.data.bars import NS, Bars, to_ns
from qmtl_sdk.data.calendars import is_open
from qmtl_sdk.transforms.execution import ExecutionNode, SizingNode
from qmtl_sdk.transforms.risk import RiskControlNode, RiskLimits
from qmtl_sdk.transforms.timing import TimingGateNode
from tests.support.frames import bars
from tests.support.pipeline import computed

PRICE = StreamInput(tags=["A", "price"], interval=60)
WANTED = StreamInput(tags=["A", "target"], interval=60)
OTHER = StreamInput(tags=["B", "target"], interval=60)
WEIGHTS = st.integers(-10, 10).map(lambda n: n / 10)
PRICES = st.one_of(st.integers(80, 120).map(float), st.just(float("nan")))
ROWS = st.lists(st.tuples(WEIGHTS, WEIGHTS, PRICES), min_size=14, max_size=40)


def wanted(
    weights: list[float], interval: int = 60, start: int | None = None, **columns: list[float]
) -> Bars:
    data = bars(weights, interval) if start is None else bars(weights, interval, start)
    given_columns = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    return Bars(data.ts, {"target_weight": data.columns["close"], **given_columns}, interval)


def limited(
    limits: RiskLimits,
    weights: list[float],
    close: list[float] | None = None,
    other: list[float] | None = None,
) -> list[float]:
    """The limited weights from the first bar on that has a whole period."""
    node = RiskControlNode(
        WANTED, limits, price=PRICE if close else None, portfolio=[OTHER] if other is not None else []
    )
    streams = {WANTED.node_id: wanted(weights)}
    streams |= {PRICE.node_id: bars(close)} if close else {}
    streams |= {OTHER.node_id: wanted(other)} if other is not None else {}
    output = computed([node], streams)[node.node_id]
    found: list[float] = output.bars.columns["target_weight"][output.first :].tolist()
    return found


LIMITS = [
    RiskLimits(max_position=0.3),
    RiskLimits(max_gross=0.8),
    RiskLimits(max_volatility=0.02, volatility_window=3),
    RiskLimits(max_drawdown=0.1, drawdown_window=4),
    RiskLimits(0.5, 0.7, 0.02, 0.1, volatility_window=3, drawdown_window=4),
]


@pytest.mark.parametrize("limits", LIMITS, ids=["position", "gross", "volatility", "drawdown", "all"])
@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_limited_weights_are_the_same_in_every_way_and_within_the_limits(
    limits: RiskLimits, rows: list[tuple[float, float, float]]
) -> None:
    weights, others, close = (list(column) for column in zip(*rows, strict=True))
    found = limited(limits, weights, close, others)
    asked = weights[len(weights) - len(found) :]
    assert all(abs(new) <= abs(old) and new * old >= 0 for new, old in zip(found, asked, strict=True))
    if limits.max_position is not None:
        assert max(map(abs, found)) <= limits.max_position
    if limits == RiskLimits(max_gross=0.8):
        both = limited(limits, others, close, weights)
        assert all(abs(a) + abs(b) <= 0.8 + 1e-12 for a, b in zip(found, both, strict=True))


def test_gross_counts_every_symbol_with_at_most_its_position() -> None:
    assert limited(RiskLimits(max_position=0.6, max_gross=0.9), [1.0, -1.0, 0.2], other=[1.0, 0.2, 0.2]) == (
        pytest.approx([0.45, -0.6, 0.2])
    )


def test_volatility_scales_the_weight_down() -> None:
    close = [100.0, 110.0, 99.0]
    deviation = float(np.std([0.1, -0.1], ddof=1))
    limits = RiskLimits(max_volatility=deviation / 2, volatility_window=2)
    assert limited(limits, [0.0, 0.0, -1.0], close) == pytest.approx([-0.5])
    assert limited(limits, [0.0, 0.0, 0.4], close) == [0.4]


def test_a_drawdown_closes_the_position_until_it_has_left_the_window() -> None:
    close = [100.0, 100.0, 88.0, 88.0, 88.0, 88.0, 88.0]
    limits = RiskLimits(max_drawdown=0.1, drawdown_window=2)
    assert limited(limits, [1.0] * 7, close) == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert limited(limits, [-1.0] * 7, close) == [-1.0] * 5
    assert limited(limits, [0.5] * 7, close) == [0.5] * 5


def test_a_missing_close_is_carried() -> None:
    close = [100.0, 100.0, float("nan"), 88.0, 88.0]
    # The last window begins with the missing close: what was before is not seen.
    assert limited(RiskLimits(max_drawdown=0.1, drawdown_window=2), [1.0] * 5, close) == [1.0, 0.0, 1.0]


def test_prices_of_other_times_are_those_known_by_then() -> None:
    """The price has no bar at two minutes of the target: bar by bar, with what had closed."""
    limits = RiskLimits(max_drawdown=0.1, drawdown_window=2)
    node = RiskControlNode(WANTED, limits, price=PRICE)
    price = bars([100.0] * 5 + [80.0] * 5)
    gaps = Bars(np.delete(price.ts, [3, 7]), {"close": np.delete(price.columns["close"], [3, 7])}, 60)
    output = computed([node], {WANTED.node_id: wanted([1.0] * 10), PRICE.node_id: gaps})[node.node_id]
    assert output.bars.columns["target_weight"][output.first :].tolist()[-5:] == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_a_price_before_its_window_is_not_seen() -> None:
    """The target lacks three bars, so that its window begins before that of the price."""
    node = RiskControlNode(WANTED, RiskLimits(max_drawdown=0.1, drawdown_window=2), price=PRICE)
    full = wanted([1.0] * 6)
    target = Bars(full.ts[[0, 4, 5]], {"target_weight": np.ones(3)}, 60)
    price = bars([100.0, 100.0, 100.0, 100.0, 80.0, 80.0])
    output = computed([node], {WANTED.node_id: target, PRICE.node_id: price})[node.node_id]
    assert output.bars.columns["target_weight"][output.first :].tolist() == [1.0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RiskLimits(), "it limits nothing"),
        (lambda: RiskLimits(max_drawdown=-0.1), "max_drawdown is -0.1"),
        (
            lambda: RiskLimits(max_position=0),
            "max_position is 0 [E_NODE_OPTION] → keep it above 0 and at most 1000",
        ),
        (
            lambda: RiskLimits(max_drawdown=20),
            "max_drawdown is 20 [E_NODE_OPTION] → keep it above 0 and at most 1",
        ),
        (lambda: RiskControlNode(WANTED, {"max_position": 0.1}), "its limits are {'max_position': 0.1}"),  # type: ignore[arg-type]
        (lambda: RiskControlNode(WANTED, None), "its limits are None [E_NODE_OPTION] → pass RiskLimits("),  # type: ignore[arg-type]
        (lambda: RiskLimits(max_volatility=0.1, volatility_window=1), "volatility_window is 1"),
        (lambda: RiskControlNode(WANTED, RiskLimits(max_drawdown=0.1)), "pass price="),
        (lambda: RiskControlNode(WANTED, RiskLimits(max_gross=1)), "pass portfolio="),
        (lambda: RiskControlNode("A", RiskLimits(max_position=1)), "is not a node"),  # type: ignore[arg-type]
        (
            lambda: RiskControlNode(
                WANTED, RiskLimits(max_drawdown=0.1), price=StreamInput(tags=["A"], interval=30)
            ),
            "pass nodes of the target's interval",
        ),
        (lambda: TimingGateNode(WANTED), "it has no rule"),
        (
            lambda: TimingGateNode(WANTED, blackouts=("2024-03-20T18:00Z", "2024-03-20T19:00Z")),  # type: ignore[arg-type]
            "the blackout '2024-03-20T18:00Z' is not a pair of times [E_NODE_OPTION] → pass blackouts=[(",
        ),
        (
            lambda: TimingGateNode(WANTED, blackouts="2024-03-20"),  # type: ignore[arg-type]
            "the blackout '2024-03-20' is not a pair",
        ),
        (
            lambda: TimingGateNode(WANTED, blackouts=[("2024-03-20T18:00Z",)]),  # type: ignore[list-item]
            "the blackout ('2024-03-20T18:00Z',) is not a pair",
        ),
        (lambda: TimingGateNode(WANTED, calendar="NEWYORK"), "'NEWYORK' is not a calendar"),
        (lambda: TimingGateNode(WANTED, calendar="24/7", closed="stop"), "closed is 'stop'"),  # type: ignore[arg-type]
        (
            lambda: TimingGateNode(WANTED, blackouts=[("2024-03-20T18:00", "2024-03-20T19:00Z")]),
            "with a zone",
        ),
        (lambda: TimingGateNode(WANTED, blackouts=[("noon", "2024-03-20T19:00Z")]), "'noon' is not a time"),
        (
            lambda: TimingGateNode(WANTED, blackouts=[("2024-03-20T19:00Z", "2024-03-20T19:00Z")]),
            "has no length",
        ),
    ],
)
def test_a_mistake_is_one_clear_error(make: object, said: str) -> None:
    with pytest.raises(QmtlError) as caught:
        make()  # type: ignore[operator]
    assert caught.value.code in ("E_NODE_OPTION", "E_NODE_INPUT")
    assert said in str(caught.value)


def test_the_order_of_a_portfolio_changes_no_identity() -> None:
    limits = RiskLimits(max_gross=1)
    one = RiskControlNode(WANTED, limits, portfolio=[OTHER, WANTED, PRICE])
    other = RiskControlNode(WANTED, limits, portfolio=[PRICE, OTHER])
    assert one.node_id == other.node_id != RiskControlNode(WANTED, limits, portfolio=[OTHER]).node_id


def gated(node: Node, data: Bars) -> tuple[list[float], list[float]]:
    output = computed([node], {node.inputs[0].node_id: data})[node.node_id]
    columns = output.bars.columns
    return columns["target_weight"][output.first :].tolist(), columns["tradable"][output.first :].tolist()


def at(text: str) -> int:
    return to_ns(datetime.fromisoformat(text))


def test_a_gate_lets_orders_pass_that_leave_in_a_session() -> None:
    """New York opens at 14:30 UTC in winter: bars of 14:28, 14:29 and 14:30 close a minute later."""
    node = TimingGateNode(WANTED, calendar="XNYS", period=1)
    data = wanted([0.1, 0.2, 0.3], start=at("2024-01-16T14:28:00+00:00"))
    assert gated(node, data) == ([0.0, 0.2, 0.3], [0.0, 1.0, 1.0])
    evening = wanted([0.1, 0.2], start=at("2024-01-16T20:58:00+00:00"))
    assert gated(node, evening) == ([0.1, 0.0], [1.0, 0.0])
    summer = wanted([0.1, 0.2], start=at("2024-07-16T13:28:00+00:00"))
    assert gated(node, summer) == ([0.0, 0.2], [0.0, 1.0])
    holiday = wanted([0.1], start=at("2024-01-15T16:00:00+00:00"))
    assert gated(node, holiday) == ([0.0], [0.0])


def test_an_exchange_is_closed_in_its_break() -> None:
    """Tokyo breaks from 02:30 to 03:30 UTC."""
    moments = np.array(
        [at(f"2024-01-16T{t}:00+00:00") for t in ("02:29", "02:30", "03:29", "03:30", "06:00")]
    )
    assert is_open("XTKS", moments).tolist() == [True, False, False, True, False]


def test_bars_of_a_day_pass_on_days_with_a_session() -> None:
    day = StreamInput(tags=["A", "daily"], interval=86_400)
    node = TimingGateNode(day, calendar="XNYS", period=2)
    friday = wanted([0.1, 0.2, 0.3, 0.4, 0.5], interval=86_400, start=at("2024-01-12T00:00:00+00:00"))
    # From Saturday on: Friday's target is held for one bar, Monday is a holiday.
    assert gated(node, friday) == ([0.1, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0])


def test_a_blackout_holds_or_closes_what_is_held() -> None:
    start = datetime(2024, 1, 16, 15, 0, tzinfo=UTC)
    data = wanted([0.1, 0.2, 0.3, 0.4], start=to_ns(start))
    window = (start + timedelta(minutes=2), "2024-01-16T16:04+01:00")  # from the close of 15:01 on
    held = TimingGateNode(WANTED, blackouts=[window], period=3)
    assert gated(held, data) == ([0.1, 0.4], [0.0, 1.0])
    flat = TimingGateNode(WANTED, blackouts=[window], closed="flat")
    assert gated(flat, data) == ([0.1, 0.0, 0.0, 0.4], [1.0, 1.0, 1.0, 1.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(WEIGHTS, min_size=12, max_size=40),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), min_size=1, max_size=3),
    st.sampled_from(["hold", "flat"]),
)
def test_gated_weights_are_the_same_in_every_way(
    weights: list[float], period: int, spans: list[tuple[int, int]], closed: str
) -> None:
    data = wanted(weights, start=at("2024-01-16T14:20:00+00:00"), tradable=[1.0] * len(weights))
    zero = datetime.fromtimestamp(int(data.ts[0]) / NS, UTC)
    windows = [(zero + timedelta(minutes=a), zero + timedelta(minutes=a + length)) for a, length in spans]
    node = TimingGateNode(WANTED, calendar="XNYS", blackouts=windows, closed=closed, period=period)  # type: ignore[arg-type]
    found, tradable = gated(node, data)
    asked = weights[len(weights) - len(found) :]
    leaves = data.closes[len(weights) - len(found) :]
    shut = ~is_open("XNYS", leaves)
    for start, end in windows:
        shut |= (leaves >= to_ns(start)) & (leaves < to_ns(end))
    if closed == "hold":
        assert tradable == [0.0 if closed_now else 1.0 for closed_now in shut]
        assert all(new == old for new, old, now in zip(found, asked, shut, strict=True) if not now)
    else:
        assert found == [0.0 if now else old for old, now in zip(asked, shut, strict=True)]


def test_a_node_without_target_weights_is_named() -> None:
    node = RiskControlNode(PRICE, RiskLimits(max_position=1))
    with pytest.raises(QmtlError, match="has no column target_weight") as caught:
        computed([node], {PRICE.node_id: bars([1.0, 2.0])})
    assert caught.value.code == "E_COLUMN_MISSING"


LIMITERS = {
    "risk": lambda target: RiskControlNode(target, RiskLimits(max_position=0.1), name="limiter"),
    "gate": lambda target: TimingGateNode(target, calendar="XNYS", closed="flat", name="limiter"),
}


@pytest.mark.parametrize("limiter", LIMITERS.values(), ids=LIMITERS)
def test_a_target_that_is_sized_by_cash_is_refused(limiter: Callable[[Node], Node]) -> None:
    """Its `target_notional` decides, which a limit on the weight would not change."""
    sized = SizingNode(WANTED, PRICE, symbol="A", initial_cash=1000, name="A sized")
    for target in (sized, ExecutionNode(sized)):
        with pytest.raises(QmtlError) as caught:
            limiter(target)
        assert str(caught.value).startswith(
            "A sized has target_notional, which decides instead of target_weight [E_NODE_INPUT] → "
            "put RiskControlNode and TimingGateNode before SizingNode(initial_cash=…)"
        )
    with pytest.raises(QmtlError, match="A sized has target_notional"):
        RiskControlNode(WANTED, RiskLimits(max_gross=1), portfolio=[sized])


@pytest.mark.parametrize("column", ["target_notional", "target_units", "quantity"])
@pytest.mark.parametrize("limiter", LIMITERS.values(), ids=LIMITERS)
def test_an_amount_besides_the_weight_is_refused(limiter: Callable[[Node], Node], column: str) -> None:
    own = Node(
        WANTED, lambda view: {"target_weight": 0.5, column: view[WANTED].values[-1]}, name="own", period=1
    )
    with pytest.raises(
        QmtlError, match=f"own has {column}, which decides instead of target_weight"
    ) as caught:
        computed([limiter(own)], {WANTED.node_id: wanted([1.0, 2.0])})
    assert caught.value.code == "E_NODE_INPUT"


@pytest.mark.parametrize("limiter", LIMITERS.values(), ids=LIMITERS)
def test_a_target_that_is_sized_by_the_world_is_limited(limiter: Callable[[Node], Node]) -> None:
    sized = SizingNode(WANTED, PRICE, symbol="A")
    node = limiter(sized)
    night = at("2024-01-16T03:00:00+00:00")
    streams = {
        WANTED.node_id: wanted([1.0, -1.0], start=night),
        PRICE.node_id: bars([9.0, 9.0], 60, night),
    }
    output = computed([node], streams)[node.node_id]
    assert max(abs(output.bars.columns["target_weight"][output.first :])) <= 0.1
