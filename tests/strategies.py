"""Strategies of the tests. `Slow` takes seconds, so that something can happen while it computes."""

import time

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput

WORLD = {
    "world": "equities",
    "clock": {"replay": {"start": "2017-12-30T00:00:00Z", "speed": 0}},
    "data": {
        "presets": [
            {
                "name": "prices",
                "source": "parquet",
                "path": "sample:us_equities_1d.parquet",
                "interval": "1d",
                "calendar": "XNYS",
                "streams": {
                    name: [name, "price"] for name in ("AAPL", "JNJ", "JPM", "KO", "MSFT", "PG", "WMT", "XOM")
                },
            }
        ]
    },
    "execution": {"fee_bps": 0.5, "slippage_bps": 0.5},
}
POLICY = {"selection": {"gates": {"and": ["sample_days >= 20", "sharpe >= -5"]}, "score": "sharpe"}}


def world(name: str = "equities") -> dict[str, object]:
    return {**WORLD, "world": name}


class Trend(Strategy):
    """Holds what stands above its average."""

    def __init__(self, symbol: str = "AAPL", period: int = 20) -> None:
        super().__init__()
        self.symbol, self.period = symbol, period

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
