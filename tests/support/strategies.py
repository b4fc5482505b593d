"""Strategies of the tests. `Slow` takes seconds, so that something can happen while it computes."""

import time

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput, TradeOrderPublisherNode


class Trend(Strategy):
    """Holds what stands above its average."""

    def __init__(self, symbol: str = "AAPL", period: int = 20) -> None:
        super().__init__()
        self.symbol = symbol
        self.period = period

    def setup(self) -> None:
        price = StreamInput(tags=[self.symbol, "price"], interval="1d", period=self.period)

        def above(view: CacheView) -> pd.DataFrame:
            close = view[price].frame["close"]
            return pd.DataFrame({"position": (close > close.rolling(self.period).mean()).astype(float)})

        self.add_nodes([Node(price, above, name=f"above {self.symbol}")])


class Slow(Strategy):
    """Bar by bar, since it answers with one number, and with a pause at each of some two thousand bars."""

    def __init__(self, pause_s: float = 0.002) -> None:
        super().__init__()
        self.pause_s = pause_s

    def setup(self) -> None:
        price = StreamInput(tags=["KO", "price"], interval="1d", period=5)

        def rising(view: CacheView) -> dict[str, float]:
            time.sleep(self.pause_s)
            close = view[price].values
            return {"position": float(close[-1] > close[0])}

        self.add_nodes([Node(price, rising, name="slow")])


class LookAhead(Strategy):
    """Reads tomorrow's close; the parity check refuses it."""

    def setup(self) -> None:
        price = StreamInput(tags=["AAPL", "price"], interval="1d", period=5)

        def tomorrow(view: CacheView) -> pd.DataFrame:
            close = view[price].frame["close"]
            return pd.DataFrame({"position": (close.shift(-1) > close).astype(float)})

        self.add_nodes([Node(price, tomorrow, name="crystal ball")])


class Half(Strategy):
    """Long with half of its capital after hours that rose, short with a quarter after others."""

    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=3)

        def target(view: CacheView) -> pd.DataFrame:
            rises = view[price].frame["close"].diff() > 0
            return pd.DataFrame({"target_weight": rises.map({True: 0.5, False: -0.25})})

        node = Node(price, target, name="target")
        self.add_nodes([node, TradeOrderPublisherNode(node, name="orders")])
