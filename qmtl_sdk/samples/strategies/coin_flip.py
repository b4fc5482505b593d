"""A strategy that should not pass: it holds one equity while its price has an even number of cents."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput


class CoinFlip(Strategy):
    """Its trades cost fees and earn nothing on average."""

    def setup(self) -> None:
        price = StreamInput(tags=["KO", "price"], interval="1d", period=1)

        def parity_of_cents(view: CacheView) -> pd.DataFrame:
            cents = (view.as_frame(price, "1d", columns=["close"]).frame["close"] * 100).round()
            return pd.DataFrame({"signal": (cents % 2 == 0).astype(float)})

        self.add_nodes([Node(price, parity_of_cents, name="parity of cents")])
