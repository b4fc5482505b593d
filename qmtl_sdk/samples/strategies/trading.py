"""A strategy that trades: long EUR/USD after an hour that rose, flat after one that fell."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput, TradeOrderPublisherNode


class HourlyTrader(Strategy):
    """Holds all of its capital in EUR/USD, or nothing."""

    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=3)

        def last_hour(view: CacheView) -> pd.DataFrame:
            rises = view[price].frame["close"].diff() > 0
            return pd.DataFrame({"target_weight": rises.astype(float)})

        target = Node(price, last_hour, name="target")
        self.add_nodes([target, TradeOrderPublisherNode(target, name="orders")])
