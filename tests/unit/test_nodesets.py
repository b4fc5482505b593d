"""The intent-first pipeline: its steps, its identity, its returns, its orders and its backtest."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmtl_sdk import Node, QmtlError, Strategy, StreamInput, TradeOrderPublisherNode
from qmtl_sdk.brokerage.models import ExecutionModel, FillModel
from qmtl_sdk.brokerage.simulation import Simulation
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.fees import PercentFee
from qmtl_sdk.contracts.sessions import QueueMessage
from qmtl_sdk.contracts.worlds import Execution, World, WorldSpec
from qmtl_sdk.data.bars import Bars, from_ns
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.nodesets.recipes import (
    INTENT_FIRST_DEFAULT_THRESHOLDS,
    IntentFirstAdapter,
    NodeSet,
    make_intent_first_nodeset,
)
from qmtl_sdk.reports.backtest import backtest, events_of, execution_models
from qmtl_sdk.reports.returns import Returns, returns_of
from qmtl_sdk.runtime.intents import IntentBuilder
from qmtl_sdk.runtime.orders import OrderIntent
from qmtl_sdk.runtime.targets import TargetIntent
from qmtl_sdk.transforms.execution import ExecutionNode, SizingNode
from qmtl_sdk.transforms.position_target import PositionTargetNode
from qmtl_sdk.transforms.publisher import MAX_SYMBOLS
from qmtl_sdk.transforms.risk import RiskControlNode, RiskLimits
from tests.support.frames import bars
from tests.support.pipeline import computed, ohlcv

SIGNAL = StreamInput(tags=["alpha"], interval=60)
PRICE = StreamInput(tags=["BTCUSDT", "price"], interval=60)
FREE = Execution()


def nodeset(world_id: str = "w", **options: Any) -> NodeSet:
    given_options = {"symbol": "BTCUSDT", "price_node": PRICE, "period": 5, **options}
    return make_intent_first_nodeset(SIGNAL, world_id, **given_options)


class OneSet(Strategy):
    def __init__(self, *sets: NodeSet) -> None:
        super().__init__()
        self.sets = sets

    def setup(self) -> None:
        for one in self.sets:
            self.add_nodeset(one)


def outputs_of(built: BuiltStrategy, streams: Mapping[StreamInput, Bars]) -> dict[str, NodeOutput]:
    return computed(built.nodes, {node.node_id: data for node, data in streams.items()})


def column(outputs: dict[str, NodeOutput], node: Node, name: str) -> list[float]:
    output = outputs[node.node_id]
    found: list[float] = output.bars.columns[name][output.first :].tolist()
    return found


def test_the_steps_of_the_pipeline() -> None:
    one = nodeset(risk=RiskLimits(max_position=0.5), calendar="24/7")
    assert list(one.steps) == ["target", "risk", "timing", "sizing", "execution", "publish"]
    assert list(nodeset().steps) == ["target", "sizing", "execution", "publish"]
    assert [node.inputs[0] for node in one.nodes[1:]] == list(one.nodes[:-1])


def test_the_worked_example() -> None:
    one = nodeset(
        thresholds=INTENT_FIRST_DEFAULT_THRESHOLDS,
        long_weight=0.25,
        short_weight=-0.10,
        initial_cash=1000,
        period=2,
    )
    built = BuiltStrategy(OneSet(one))
    outputs = outputs_of(
        built,
        {SIGNAL: bars([0.0, 0.7, 0.3, 0.1, -0.8]), PRICE: ohlcv([100.0, 110.0, 120.0, 130.0, 140.0])},
    )
    assert column(outputs, one.steps["publish"], "target_weight") == [0.25, 0.25, 0.0, -0.1]
    assert column(outputs, one.steps["publish"], "target_notional") == [250.0, 250.0, 0.0, -100.0]
    assert column(outputs, one.steps["publish"], "price") == [110.0, 120.0, 130.0, 140.0]


def test_a_world_is_no_part_of_an_identity() -> None:
    ids = {tuple(node.node_id for node in nodeset(world).nodes) for world in ("one", "other", "")}
    assert len(ids) == 1

    class Told(Strategy):
        def setup(self) -> None:
            self.add_nodeset(nodeset(self.world_id))

    one, other = BuiltStrategy(Told, "one"), BuiltStrategy(Told, "other")
    assert (one.strategy.world_id, other.strategy.world_id) == ("one", "other")
    assert one.dag.strategy_id == other.dag.strategy_id


def test_a_compute_function_that_uses_its_world_is_refused() -> None:
    class Leaks(Strategy):
        def setup(self) -> None:
            self.add_nodes([Node(PRICE, lambda view: len(self.world_id), name="leak")])

    with pytest.raises(QmtlError, match="'world_id' says where or when it computes") as caught:
        BuiltStrategy(Leaks, "one")
    assert caught.value.code == "E_NODE_ID_FIELDS"


def test_every_option_changes_the_identity_of_what_it_changes() -> None:
    def ids(**options: Any) -> tuple[str, ...]:
        found = nodeset(**options).steps
        return tuple(found[step].node_id for step in ("target", "sizing", "execution", "publish"))

    plain = ids()
    changed = {
        "target": ids(long_weight=0.5),
        "sizing": ids(initial_cash=1000),
        "execution": ids(execution_model=ExecutionModel(time_in_force="IOC")),
        "publish": ids(symbol="ETHUSDT"),
    }
    assert changed["target"][0] != plain[0]
    assert changed["sizing"][0] == plain[0]
    assert changed["sizing"][1] != plain[1]
    assert changed["execution"][:2] == plain[:2]
    assert changed["execution"][2] != plain[2]
    assert changed["publish"][1] != plain[1]
    assert ids(execution_model=ExecutionModel()) == plain


def test_cash_is_the_same_as_a_decimal() -> None:
    one, other = nodeset(initial_cash=Decimal("1000.10")), nodeset(initial_cash=1000.1)
    assert [node.node_id for node in one.nodes] == [node.node_id for node in other.nodes]


def test_existing_publishers_keep_their_identity() -> None:
    """Those of before there were targets."""
    price = StreamInput(tags=["A"], interval="1h")
    assert TradeOrderPublisherNode(price, symbol="X").node_id == PUBLISHER_OF_X
    assert TradeOrderPublisherNode(price).node_id == PUBLISHER


PUBLISHER_OF_X = "blake3:3cc6c86e8df4f91efa635370ea17fee39f46caa03b744f5e81fd4f543ed9eea1"
PUBLISHER = "blake3:f6163e552a3069a49c941f38f7d7cd19f68b63a602536f917c4e2750aa4ae755"


def test_an_adapter_binds_its_inputs_later() -> None:
    adapter = IntentFirstAdapter("BTCUSDT", {"period": 5, "long_weight": 0.5})
    bound = adapter.bind({"signal": SIGNAL, "price": PRICE}, "w")
    assert [node.node_id for node in bound.nodes] == [node.node_id for node in nodeset(long_weight=0.5).nodes]
    for nodes in ({"signal": SIGNAL}, {"signal": SIGNAL, "price": PRICE, "extra": PRICE}):
        with pytest.raises(QmtlError, match="bind exactly: signal, price") as caught:
            adapter.bind(nodes)
        assert caught.value.code == "E_NODE_INPUT"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nodeset(symbol=""), "sizing: it has no symbol"),
        (lambda: nodeset(price_node="BTCUSDT"), "'BTCUSDT' as its price, which is not a node"),
        (
            lambda: nodeset(initial_cash=0),
            "initial_cash is 0 [E_NODE_OPTION] → keep it above 0 and at most 1e+15",
        ),
        (lambda: nodeset(initial_cash=Decimal("NaN")), "initial_cash is Decimal('NaN')"),
        (lambda: nodeset(initial_cash=Decimal("1e16")), "initial_cash is 1e+16"),
        (lambda: nodeset(thresholds=None), "thresholds is None [E_NODE_OPTION] → pass Thresholds(long_enter"),
        (lambda: nodeset(risk={"max_position": 0.1}), "its limits are {'max_position': 0.1} [E_NODE_OPTION]"),
        (lambda: nodeset(blackouts=("2024-01-01T00:00Z", "2024-01-02T00:00Z")), "is not a pair of times"),
        (lambda: nodeset(long_weight=1.01), "long_weight is 1.01"),
        (lambda: nodeset(calendar="NYSE!"), "'NYSE!' is not a calendar"),
        (lambda: nodeset(execution_model="market"), "'market' is not an ExecutionModel"),
        (
            lambda: nodeset(
                thresholds={"long_enter": 0.1, "long_exit": 0.2, "short_enter": -1, "short_exit": 0}
            ),
            "do not",
        ),
        (lambda: nodeset(treshold=1), "has no option treshold"),
        (
            lambda: nodeset(risk=RiskLimits(max_gross=1)),
            "is of one instrument, and max_gross adds up a portfolio [E_NODE_OPTION] → leave max_gross out",
        ),
        (
            lambda: OneSet().add_nodes(nodeset()),
            "BTCUSDT is not a list of nodes [E_NODE_INPUT] → use add_nodeset",
        ),  # type: ignore[arg-type]
        (lambda: OneSet().add_nodeset([]), "has no nodes"),  # type: ignore[arg-type]
        (lambda: TradeOrderPublisherNode({}), "not named once each"),
        (lambda: TradeOrderPublisherNode({"A": PRICE}, symbol="A"), "not named once each"),
        (lambda: TradeOrderPublisherNode({"": PRICE}), "not named once each"),
        (lambda: TradeOrderPublisherNode({f"S{n}": PRICE for n in range(67)}), "67 symbols, of at most 66"),
        (lambda: TradeOrderPublisherNode({"A": "price"}), "is not a node"),  # type: ignore[dict-item]
    ],
)
def test_a_mistake_is_one_clear_error(make: Callable[[], object], said: str) -> None:
    with pytest.raises(QmtlError) as caught:
        make()
    assert caught.value.code in ("E_NODE_OPTION", "E_NODE_INPUT")
    assert said in str(caught.value)


# Returns


def measured(
    built: BuiltStrategy, streams: Mapping[StreamInput, Bars], execution: Execution = FREE
) -> Returns:
    return returns_of(built, outputs_of(built, streams), execution)


def test_target_weights_are_positions_over_the_price_of_their_sizing() -> None:
    """The signal is a price stream as well; which one the position is in is what sizing says."""
    built = BuiltStrategy(OneSet(nodeset(long_weight=0.25, short_weight=-0.1, period=1)))
    found = measured(
        built,
        {SIGNAL: bars([0.7, 0.0, -0.7, 0.0]), PRICE: ohlcv([100.0, 110.0, 121.0, 108.9])},
        Execution(fee_bps=100),
    )
    np.testing.assert_allclose(found.values, [0, 0.025 - 0.0025, -0.0025, 0.01 - 0.001])
    assert found.instruments == {"BTCUSDT execution": PRICE.node_id}
    np.testing.assert_array_equal(found.positions["BTCUSDT execution"], [0.25, 0, -0.1, 0])
    assert found.weights == {"BTCUSDT execution": 1.0}


class Several(Strategy):
    """A target weight for each symbol, from its signal."""

    def __init__(self, weights: dict[str, float], gross: float | None = None, many: bool = False) -> None:
        super().__init__()
        self.weights_of = weights
        self.gross = gross
        self.many = many
        self.streams = {
            symbol: (
                StreamInput(tags=[symbol, "alpha"], interval=60),
                StreamInput(tags=[symbol, "price"], interval=60),
            )
            for symbol in weights
        }

    def setup(self) -> None:
        targets: dict[str, Node] = {
            symbol: PositionTargetNode(
                self.streams[symbol][0], long_weight=weight, short_weight=-weight, period=1, name=symbol
            )
            for symbol, weight in self.weights_of.items()
        }
        ends: dict[str, Node] = {}
        for symbol, target in targets.items():
            if self.gross is not None:
                target = RiskControlNode(
                    target, RiskLimits(max_gross=self.gross), portfolio=[*targets.values()]
                )
            ends[symbol] = ExecutionNode(
                SizingNode(target, self.streams[symbol][1], symbol=symbol), name=symbol
            )
        if self.many:
            self.add_nodes([TradeOrderPublisherNode(ends)])
        else:
            self.add_nodes([TradeOrderPublisherNode(end, symbol=key, name=key) for key, end in ends.items()])

    def bars(self, rows: dict[str, tuple[list[float], list[float]]]) -> dict[StreamInput, Bars]:
        return {
            stream: data
            for symbol, (signal, close) in rows.items()
            for stream, data in zip(self.streams[symbol], (bars(signal), ohlcv(close)), strict=True)
        }


def test_target_weights_of_several_symbols_add_up() -> None:
    strategy = Several({"A": 0.5, "B": 0.2})
    built = BuiltStrategy(strategy)
    rows = {"A": ([1.0, 1.0, 0.0], [100.0, 110.0, 121.0]), "B": ([0.0, -1.0, 0.0], [10.0, 10.0, 12.0])}
    found = measured(built, strategy.bars(rows))
    np.testing.assert_allclose(found.values, [0, 0.05, 0.05 - 0.04])
    assert sum(found.weights.values()) == pytest.approx(1)
    for name, weights in {"A": [0.5, 0.5, 0.0], "B": [0.0, -0.2, 0.0]}.items():
        np.testing.assert_allclose(found.weights[name] * found.positions[name], weights)
        assert np.abs(found.positions[name]).max() <= 1


def test_a_target_that_another_symbols_limit_reads_is_an_instrument_all_the_same() -> None:
    prices = {name: StreamInput(tags=[name, "price"], interval=60) for name in "AB"}

    class Pair(Strategy):
        def setup(self) -> None:
            a, b = (
                PositionTargetNode(price, long_weight=0.5, period=1, name=name)
                for name, price in prices.items()
            )
            limited = RiskControlNode(a, RiskLimits(max_gross=1), portfolio=[b], name="A limited")
            self.add_nodes([b, SizingNode(limited, prices["A"], symbol="A", name="A sized")])

    found = measured(BuiltStrategy(Pair), {price: bars([1.0, 2.0, 2.0]) for price in prices.values()})
    assert set(found.positions) == {"A sized", "B"}
    np.testing.assert_allclose(found.values, [0, 1.0, 0])


def test_symbols_that_are_always_flat_have_returns_of_0() -> None:
    strategy = Several({"A": 0.5, "B": 0.2})
    rows = {"A": ([0.0, 0.0], [100.0, 110.0]), "B": ([0.0, 0.0], [10.0, 12.0])}
    found = measured(BuiltStrategy(strategy), strategy.bars(rows))
    assert not found.values.any()
    assert found.weights == {"A": 0.5, "B": 0.5}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.4, 1.0]), min_size=8, max_size=8),
    st.lists(st.sampled_from([-1.0, 0.0, 0.4, 1.0]), min_size=8, max_size=8),
    st.booleans(),
)
def test_a_portfolio_within_its_gross_limit_is_measured_and_published(
    a: list[float], b: list[float], many: bool
) -> None:
    strategy = Several({"A": 0.8, "B": 0.6}, gross=0.7, many=many)
    built = BuiltStrategy(strategy)
    path = [100.0, 101.0, 103.0, 99.0, 98.0, 104.0, 104.0, 100.0]
    streams = strategy.bars({"A": (a, path), "B": (b, path[::-1])})
    found = measured(built, streams)
    held = [abs(found.weights[name]) * np.abs(position) for name, position in found.positions.items()]
    assert (sum(held) <= 0.7 + 1e-12).all()
    changes = [np.diff(path) / path[:-1], np.diff(path[::-1]) / path[::-1][:-1]]
    expected = sum(
        found.weights[name] * found.positions[name][:-1] * change
        for name, change in zip("AB", changes, strict=True)
    )
    np.testing.assert_allclose(found.values[1:], expected, atol=1e-12)
    assert {order.ticket.symbol for order in backtest(built, outputs_of(built, streams)).orders} <= {"A", "B"}


def test_positions_decide_where_a_strategy_has_them() -> None:
    class Both(Strategy):
        def setup(self) -> None:
            half = Node(
                PRICE,
                lambda view: pd.DataFrame({"position": [1.0], "target_weight": [0.5]}),
                name="half",
                period=1,
            )
            self.add_nodes([half, TradeOrderPublisherNode(ExecutionNode(half), symbol="BTCUSDT")])

    built = BuiltStrategy(Both)
    found = measured(built, {PRICE: bars([100.0, 110.0, 121.0])})
    assert list(found.positions) == ["half"]
    np.testing.assert_allclose(found.values, [0, 0.1, 0.1])


def test_weights_besides_target_weights_and_weights_above_1_are_refused() -> None:
    class Weighted(OneSet):
        def setup(self) -> None:
            super().setup()
            self.add_nodes([], weights={self.sets[0].steps["execution"]: 2.0})

    streams = {SIGNAL: bars([0.7, 0.7]), PRICE: bars([100.0, 101.0])}
    with pytest.raises(QmtlError, match="leave weights= out") as caught:
        measured(BuiltStrategy(Weighted(nodeset(period=1))), streams)
    assert caught.value.code == "E_RETURNS_AMBIGUOUS"

    class Above(Strategy):
        def setup(self) -> None:
            above = Node(PRICE, lambda view: pd.DataFrame({"target_weight": [1.2]}), name="above")
            self.add_nodes([TradeOrderPublisherNode(above, symbol="BTCUSDT")])

    built = BuiltStrategy(Above)
    outputs = outputs_of(built, {PRICE: bars([100.0, 101.0])})
    for judge in (lambda: returns_of(built, outputs, FREE), lambda: backtest(built, outputs)):
        with pytest.raises(QmtlError, match=r"1\.2") as caught:
            judge()
        assert (caught.value.code, caught.value.remedy) == ("E_COMPUTE_OUTPUT", "keep it between -1 and 1")


# Publishing


def test_one_publisher_for_many_symbols_publishes_what_one_for_each_does() -> None:
    signals = {"A": [1.0, 1.0, 0.0, -1.0], "B": [0.0, -1.0, -1.0, 0.0]}
    close = {"A": [100.0, 110.0, 121.0, 100.0], "B": [10.0, 11.0, 12.0, 13.0]}
    found = []
    for many in (True, False):
        strategy = Several({"A": 0.5, "B": 0.2}, many=many)
        built = BuiltStrategy(strategy)
        rows = {symbol: (signals[symbol], close[symbol]) for symbol in signals}
        outputs = outputs_of(built, strategy.bars(rows))
        found.append([*events_of(built, outputs)])
    assert found[0] == found[1]
    assert [target.value for event in found[0] for target in event.targets] == [
        Decimal(text) for text in ("0.5", "0", "0.5", "-0.2", "0", "-0.2", "-0.5", "0")
    ]


def test_the_row_of_as_many_symbols_as_a_publisher_takes_fits_in_a_queue() -> None:
    """Each with the column that decides, the price, and whether it may be traded."""
    wide = Node(
        PRICE,
        lambda view: {
            "target_units": 2.0,
            "target_weight": 0.5,
            "price": 1.0,
            "tradable": 1.0,
            "position": 1.0,
        },
        name="wide",
    )
    node = TradeOrderPublisherNode({f"S{n}": wide for n in range(MAX_SYMBOLS)})
    row = computed([node], {PRICE.node_id: bars([100.0])})[node.node_id].bars.columns
    assert set(node.rows({name: float(values[0]) for name, values in row.items()})["S0"]) == {
        "target_units",
        "price",
        "tradable",
    }
    QueueMessage.model_validate(
        {"key": "k", "ts": 0, "values": {name: float(values[0]) for name, values in row.items()}}
    )


def test_a_symbol_without_a_bar_is_missing_in_the_row() -> None:
    a, b = (StreamInput(tags=[name], interval=60) for name in "ab")
    nodes = {
        stream.tags[0]: Node(
            stream, lambda view, s=stream: {"quantity": float(view[s].values[-1])}, name=stream.tags[0]
        )
        for stream in (a, b)
    }
    node = TradeOrderPublisherNode(nodes)
    data = bars([1.0, 2.0, 3.0])
    gap = Bars(data.ts[[0, 2]], {"close": np.array([7.0, 9.0])}, 60)
    output = computed([node], {a.node_id: data, b.node_id: gap})[node.node_id].bars.columns
    np.testing.assert_array_equal(output["a.quantity"], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(output["b.quantity"], [7.0, np.nan, 9.0])


class Recorded:
    """Takes the intents that a running strategy would send."""

    def __init__(self) -> None:
        self.sent: list[OrderIntent] = []
        self.held: list[OrderIntent] = []
        self.targets: list[TargetIntent] = []

    def set_targets(self, intents: Sequence[TargetIntent]) -> None:
        self.targets += intents

    def enqueue(self, intent: OrderIntent) -> bool:
        self.sent.append(intent)
        return True

    def withhold(self, intent: OrderIntent, reason: str) -> None:
        self.held.append(intent)


def test_a_running_strategy_sends_an_order_for_each_symbol_with_a_quantity() -> None:
    prices = {name: StreamInput(tags=[name, "price"], interval=60) for name in ("BRK.B", "AAPL")}
    node = TradeOrderPublisherNode({name: Node(price, len, name=name) for name, price in prices.items()})
    builder = IntentBuilder([node], World(spec=WorldSpec(world="w"), created_at=datetime.now(UTC), etag="e"))
    builder.set_price(prices["AAPL"].node_id, 190.0)
    to = Recorded()
    row = {"AAPL.quantity": 2.0, "BRK.B.quantity": -1.0, "BRK.B.price": 400.0, "AAPL.target_weight": 0.5}
    builder.publish(to, node, 0, row, from_ns(60 * 10**9))  # type: ignore[arg-type]
    assert [(one.symbol, one.quantity, one.price) for one in to.sent] == [
        ("AAPL", 2.0, 190.0),
        ("BRK.B", -1.0, 400.0),
    ]
    builder.publish(to, node, 0, row, from_ns(3600 * 10**9))  # type: ignore[arg-type]
    assert [one.symbol for one in to.held] == ["AAPL", "BRK.B"]
    builder.publish(to, node, 0, {"AAPL.target_weight": 0.5}, from_ns(60 * 10**9))  # type: ignore[arg-type]
    assert len(to.sent) == 2  # a target is no order
    assert [(one.symbol, one.unit, one.value) for one in to.targets] == [("AAPL", "weight", Decimal("0.5"))]


@pytest.mark.parametrize(
    ("row", "unit", "value"),
    [
        ({"target_weight": 0.5, "target_notional": 250.0, "target_units": 2.0}, "units", "2"),
        ({"target_weight": 0.5, "target_notional": 250.0, "target_units": float("nan")}, "notional", "250"),
        ({"target_weight": -0.1, "price": 3.0}, "weight", "-0.1"),
        ({"quantity": 3.0, "target_weight": 0.5}, "quantity", "3"),
    ],
)
def test_the_most_specific_column_of_a_row_decides(row: dict[str, float], unit: str, value: str) -> None:
    found = TradeOrderPublisherNode.target("A", row)
    assert found is not None
    assert (found.unit, found.value) == (unit, Decimal(value))


@pytest.mark.parametrize(("column", "tradable"), [(0.0, False), (1.0, True), (None, True)])
def test_a_row_says_whether_it_may_be_traded(column: float | None, tradable: bool) -> None:
    row = {"target_weight": 0.5} if column is None else {"target_weight": 0.5, "tradable": column}
    found = TradeOrderPublisherNode.target("A", row)
    assert found is not None
    assert found.tradable is tradable


def test_a_row_without_a_target_says_nothing() -> None:
    assert TradeOrderPublisherNode.target("A", {"target_weight": float("nan"), "price": 3.0}) is None
    assert TradeOrderPublisherNode.target("A", {}) is None


# Backtest


def simulated(cash: str = "1000", **options: Any) -> Simulation:
    built = BuiltStrategy(OneSet(nodeset(period=1, **options)))
    streams = {
        SIGNAL: bars([0.0, 0.7, 0.7, -0.7, 0.0, 0.0]),
        PRICE: ohlcv([100.0, 100.0, 110.0, 120.0, 90.0, 90.0]),
    }
    return backtest(built, outputs_of(built, streams), Decimal(cash))


def test_a_backtest_trades_at_the_next_open_with_the_pipelines_own_model() -> None:
    model = ExecutionModel(fills=FillModel(lot=1, slippage_bps=100, fees=PercentFee(bps=10)))
    found = simulated(execution_model=model, long_weight=0.5, short_weight=-0.5)
    assert [(f"{fill.signed:f}", f"{fill.price.normalize():f}") for fill in found.fills] == [
        ("5", "101"),
        ("-9", "118.8"),
        ("4", "90.9"),
    ]
    assert found.account.positions == {"BTCUSDT": 0}
    assert found.account.cash == 1000 - 505 + Decimal("1069.2") - Decimal("363.6") - found.account.fees
    assert found.account.fees == Decimal("0.505") + Decimal("1.0692") + Decimal("0.3636")
    assert execution_models(BuiltStrategy(OneSet(nodeset(execution_model=model)))) == {"BTCUSDT": model}


def test_a_backtest_with_initial_cash_sizes_by_that() -> None:
    by_cash = simulated("5000", initial_cash=1000, long_weight=0.5, short_weight=0.0)
    by_equity = simulated("5000", long_weight=0.5, short_weight=0.0)
    assert [fill.quantity for fill in by_cash.fills] == [5, 5]
    assert [fill.quantity for fill in by_equity.fills] == [25, 25]


def test_limits_and_hours_reach_the_orders() -> None:
    """A blackout keeps the first two targets from being traded; the position limit halves the rest."""
    start = bars([0.0]).ts[0] // 10**9
    window = (datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(start + 181, UTC))
    found = simulated(blackouts=[window], risk=RiskLimits(max_position=0.5))
    assert [(fill.side, fill.quantity) for fill in found.fills] == [
        ("sell", Decimal("4.166666666666")),
        ("buy", Decimal("4.166666666666")),
    ]


def test_what_publishes_nothing_or_twice_is_refused() -> None:
    class Silent(Strategy):
        def setup(self) -> None:
            self.add_nodes([nodeset().steps["execution"]])

    streams = {SIGNAL: bars([0.0] * 6), PRICE: bars([100.0] * 6)}
    built = BuiltStrategy(Silent)
    with pytest.raises(QmtlError, match="publishes no targets"):
        backtest(built, outputs_of(built, streams))
    twice = BuiltStrategy(OneSet(nodeset(), nodeset(long_weight=0.5)))
    with pytest.raises(QmtlError, match="BTCUSDT is published twice"):
        backtest(twice, outputs_of(twice, streams))
