"""A pipeline over the sample prices: its backtest equals a replay bar by bar, and the paper broker."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pandas as pd
import pyarrow.parquet as pq
import pytest

from activities.brokers.broker import AcceptedOrder
from activities.brokers.paper import PaperBroker
from qmtl_sdk import (
    CacheView,
    ExecutionModel,
    FillModel,
    Node,
    RiskLimits,
    Strategy,
    StreamInput,
    TradeOrderPublisherNode,
    make_intent_first_nodeset,
)
from qmtl_sdk.brokerage.orders import OrderTicket
from qmtl_sdk.brokerage.simulation import CloseEvent, Simulation, market_bars
from qmtl_sdk.compute.engine import compute
from qmtl_sdk.compute.live import LiveEngine
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fees import PerShareFee
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.orders import ENDED, Order, order_id_prefix
from qmtl_sdk.contracts.worlds import World, WorldSpec
from qmtl_sdk.data.bars import Bars, from_ns, to_ns
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.backtest import INITIAL_CASH, backtest, events_of, execution_models
from tests.support import ROOT

SYMBOLS = ("AAPL", "IBM")
DAYS = 500
# Ten shares of each million that trade, so that orders take several days.
MODELS = {
    "market": ExecutionModel(
        fills=FillModel(
            slippage_bps=3,
            volume_share="0.00001",
            lot=1,
            fees=PerShareFee(per_share="0.005", minimum=1),
        )
    ),
    "limit": ExecutionModel(order_type="limit", time_in_force="DAY", limit_offset_bps=50),
}


class Trends(Strategy):
    def __init__(self, model: ExecutionModel) -> None:
        super().__init__()
        self.model = model

    def setup(self) -> None:
        for symbol in SYMBOLS:
            price = StreamInput(tags=[symbol, "price"], interval="1d", period=20)

            def trend(view: CacheView, price: StreamInput = price) -> pd.DataFrame:
                close = view[price].frame["close"]
                window = close.rolling(20)
                return pd.DataFrame({"trend": (close - window.mean()) / (2 * window.std())})

            self.add_nodeset(
                make_intent_first_nodeset(
                    Node(price, trend, name=f"{symbol} trend"),
                    self.world_id,
                    symbol=symbol,
                    price_node=price,
                    long_weight=0.5,
                    short_weight=-0.3,
                    risk=RiskLimits(max_volatility=0.01, max_drawdown=0.1, drawdown_window=20),
                    calendar="XNYS",
                    execution_model=self.model,
                )
            )


def sample(symbol: str) -> Bars:
    path = ROOT / "qmtl_sdk" / "samples" / "prices" / "us_stocks_ohlcv_1d.parquet"
    rows = pq.read_table(path).to_pandas().query("symbol == @symbol").sort_values("ts").iloc[:DAYS]
    ts = pd.DatetimeIndex(rows["ts"]).as_unit("ns").asi8
    columns = {name: rows[name].to_numpy(float) for name in ("open", "high", "low", "close", "volume")}
    return Bars(ts, columns, 86_400)


def replayed(built: BuiltStrategy, streams: dict[str, Bars]) -> Iterator[CloseEvent]:
    """What is seen by whoever computes and fills live, close by close."""
    engine = LiveEngine(built.nodes)
    bars = {node_id: list(market_bars(data)) for node_id, data in streams.items()}
    symbols = {node_id: built.by_id[node_id].tags[0] for node_id in streams}
    for row, close in enumerate(next(iter(streams.values())).closes.tolist()):
        now = {
            node_id: (int(data.ts[row]), {name: float(values[row]) for name, values in data.columns.items()})
            for node_id, data in streams.items()
        }
        found = [
            node.target(symbol, output.values)
            for output in engine.advance(close, now)
            if isinstance(node := output.node, TradeOrderPublisherNode)
            for symbol, _ in node.markets().values()
        ]
        targets = tuple(target for target in found if target is not None)
        yield CloseEvent(close, {symbols[node_id]: bars[node_id][row] for node_id in streams}, targets)


@pytest.mark.parametrize("name", MODELS)
def test_a_backtest_equals_a_replay_fill_for_fill(name: str) -> None:
    built = BuiltStrategy(Trends(MODELS[name]), "w")
    streams = {node.node_id: sample(node.tags[0]) for node in built.nodes if isinstance(node, StreamInput)}
    outputs: dict[str, NodeOutput] = {}
    for node in built.nodes:
        bars = streams.get(node.node_id)
        outputs[node.node_id] = compute(node, outputs)[0] if bars is None else NodeOutput(bars)
    whole = backtest(built, outputs)
    again = Simulation(INITIAL_CASH, execution_models(built)).run(replayed(built, streams))
    assert again.fills == whole.fills
    assert again.rows == whole.rows
    assert {fill.symbol for fill in whole.fills} == set(SYMBOLS)
    assert len(whole.fills) > 20
    if name == "market":
        assert max(len(order.fills) for order in whole.orders) > 1


def replay_world(start: int) -> World:
    """A world over the same prices whose paper broker fills by the model of the pipeline (`MODELS`)."""
    spec = {
        "world": "w",
        "clock": {"replay": {"start": from_ns(start).isoformat(), "speed": 1}},
        "data": {
            "presets": [
                {
                    "name": "days",
                    "source": "parquet",
                    "path": "sample:us_stocks_ohlcv_1d.parquet",
                    "interval": "1d",
                    "calendar": "XNYS",
                    "streams": {symbol: [symbol, "price"] for symbol in SYMBOLS},
                }
            ]
        },
        "execution": {
            "fill": "next_open",
            "slippage_bps": 3,
            "volume_share": "0.00001",
            "fees": {"kind": "per_share", "per_share": "0.005", "minimum": "1"},
        },
        "instruments": {"lot": "1"},
    }
    return World(spec=WorldSpec.model_validate(spec), created_at=datetime(2026, 1, 1, tzinfo=UTC), etag="e")


def accepted_order(ticket: OrderTicket, at: datetime) -> AcceptedOrder:
    """An order of the simulation as the fence accepts it."""
    order = Order(
        order_id=order_id_prefix("w", "s") + ticket.order_id,
        world_id="w",
        strategy_id="s",
        execution_domain=Domain.DRYRUN,
        epoch=1,
        symbol=ticket.symbol,
        side=ticket.side,
        quantity=ticket.quantity,
        reference_price=Decimal(1),
        decided_at=from_ns(ticket.placed_at),
    )
    return AcceptedOrder(order, at)


@pytest.mark.parametrize("dies_every", [10**9, 40])
def test_the_paper_broker_makes_the_fills_of_the_backtest(dies_every: int) -> None:
    """The orders that the backtest places go to the paper broker as its bars close, fill for fill.

    A broker that dies now and then makes the same ones.
    """
    built = BuiltStrategy(Trends(MODELS["market"]), "w")
    streams = {node.node_id: sample(node.tags[0]) for node in built.nodes if isinstance(node, StreamInput)}
    outputs: dict[str, NodeOutput] = {}
    for node in built.nodes:
        bars = streams.get(node.node_id)
        outputs[node.node_id] = compute(node, outputs)[0] if bars is None else NodeOutput(bars)
    whole = backtest(built, outputs)

    start = int(next(iter(streams.values())).ts[0])
    world = replay_world(start)
    simulation = Simulation(INITIAL_CASH, execution_models(built))
    opened: dict[str, AcceptedOrder] = {}
    fills: dict[str, tuple[Order, Fill]] = {}

    def look(now: datetime) -> None:
        for report in broker.find(list(opened.values()), now):
            order = opened[report.order_id].order
            fills.update({fill.fill_id: (order, fill) for fill in report.fills})
            if report.state in ENDED:
                del opened[report.order_id]

    for number, event in enumerate(events_of(built, outputs)):
        if number % dies_every == 0:
            broker = PaperBroker("paper", worlds=lambda world_id: world)
        simulation.step(event)
        wall = world.created_at + (from_ns(event.at) - from_ns(start))
        look(wall)
        orders = {accepted_order(item.ticket, wall).order.order_id: item for item in simulation.orders}
        replaced = [opened[name] for name in opened if not orders[name].is_open]
        broker.cancel(replaced, wall)
        look(wall)
        for order_id, item in orders.items():
            if item.ticket.placed_at == event.at:
                opened[order_id] = accepted_order(item.ticket, wall)
        broker.place(list(opened.values()), wall)

    assert whole.fills == simulation.fills
    found = sorted(
        (to_ns(fill.at), order.symbol, order.side, fill.quantity, fill.price, fill.fee)
        for order, fill in fills.values()
        if fill.at is not None
    )
    assert found == sorted(
        (fill.at, fill.symbol, fill.side, fill.quantity, fill.price, fill.fee) for fill in whole.fills
    )
    assert len(found) > 20
    assert max(len(order.fills) for order in whole.orders) > 1
