"""Hourly mean reversion of EUR/USD: buy when the price has fallen far below its average of five days."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput

HOURS = 120
BAND = 1.5  # standard deviations


class FxMeanReversion(Strategy):
    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=HOURS)

        def z_score(view: CacheView) -> pd.DataFrame:
            close = view.as_frame(price, "1h", columns=["close"]).frame["close"]
            window = close.rolling(HOURS)
            return pd.DataFrame({"z": (close - window.mean()) / window.std()})

        score = Node(price, z_score, name="z-score")

        def dip(view: CacheView) -> pd.DataFrame:
            return pd.DataFrame({"position": (view[score].frame["z"] < -BAND).astype(float)})

        self.add_nodes([score, Node(score, dip, name="buy the dip", period=1)])
