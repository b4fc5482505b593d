"""Hourly mean reversion of EUR/USD: buy when the price is far below its five-day average."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput

HOURS = 120
"""The length of the average: five days."""

BAND = 1.5
"""How far below its average the price must be, in standard deviations."""


class FxMeanReversion(Strategy):
    """Long while the z-score of the price is below `-BAND`."""

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
