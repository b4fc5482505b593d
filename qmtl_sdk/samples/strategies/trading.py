"""A strategy that trades: long EUR/USD after an hour that rose, flat after one that fell, with an order whenever that changes."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

UNITS = 1000.0


class HourlyTrader(Strategy):
    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=3)

        def follow(view: CacheView) -> pd.DataFrame:
            position = (view[price].frame["close"].diff() > 0).astype(float)
            return pd.DataFrame({"position": position, "quantity": position.diff() * UNITS})

        follows = Node(price, follow, name="follow")
        self.add_nodes([follows, TradeOrderPublisherNode(follows, name="orders")])
