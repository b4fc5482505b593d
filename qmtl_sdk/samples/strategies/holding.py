"""Strategies that hold one share of their capital all the time, two of them in opposite directions."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput, TradeOrderPublisherNode


class _Holder(Strategy):
    """Holds `share` of its capital in EUR/USD; negative: short."""

    share = 0.0

    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=2)
        share = self.share

        def held(view: CacheView) -> pd.DataFrame:
            return pd.DataFrame({"target_weight": 0 * view[price].frame["close"] + share})

        target = Node(price, held, name="target")
        self.add_nodes([target, TradeOrderPublisherNode(target, name="orders")])


class LongEuro(_Holder):
    """Long all of its capital."""

    share = 1.0


class ShortEuro(_Holder):
    """Short a part of its capital."""

    share = -0.4


class SomeEuro(_Holder):
    """Long half of its capital."""

    share = 0.5
