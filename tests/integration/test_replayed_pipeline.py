"""A pipeline over the sample prices: its backtest equals a replay that sees one bar after the other."""

from collections.abc import Iterator

import pandas as pd
import pyarrow.parquet as pq
import pytest

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
from qmtl_sdk.brokerage.models import PerShareFee
from qmtl_sdk.brokerage.simulation import CloseEvent, Simulation, market_bars
from qmtl_sdk.compute.engine import compute
from qmtl_sdk.compute.live import LiveEngine
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.data.bars import Bars
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.backtest import INITIAL_CASH, backtest, execution_models
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
