"""Hourly mean reversion of EUR/USD: against the move when the price is far from its average of two days."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput

HOURS = 48
BAND = 2.0  # standard deviations


class FxMeanReversion(Strategy):
    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=HOURS)

        def z_score(view: CacheView) -> pd.DataFrame:
            close = view.as_frame(price, "1h", columns=["close"]).frame["close"]
            window = close.rolling(HOURS)
            return pd.DataFrame({"z": (close - window.mean()) / window.std()})

        score = Node(price, z_score, name="z-score")

        def against(view: CacheView) -> pd.DataFrame:
            z = view[score].frame["z"]
            return pd.DataFrame({"position": (z < -BAND).astype(float) - (z > BAND).astype(float)})

        self.add_nodes([score, Node(score, against, name="against the move", period=1)])
