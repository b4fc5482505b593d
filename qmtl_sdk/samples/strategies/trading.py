"""A strategy that sends orders: long EUR/USD after an hour that rose, flat after one that fell."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput, TradeOrderPublisherNode

UNITS = 1000.0
"""Euros of one order."""


class HourlyTrader(Strategy):
    """Sends an order whenever its position changes."""

    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=3)

        def last_hour(view: CacheView) -> pd.DataFrame:
            held = (view[price].frame["close"].diff() > 0).astype(float)
            return pd.DataFrame({"position": held, "quantity": held.diff() * UNITS})

        position = Node(price, last_hour, name="position")
        self.add_nodes([position, TradeOrderPublisherNode(position, name="orders")])
