"""Momentum over four US equities: hold each that is higher than half a year ago."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Strategy, StreamInput

SYMBOLS = ("AAPL", "JNJ", "MSFT", "XOM")
"""The instruments, each with its own position."""

LOOKBACK = 126
"""Trading days in half a year."""


class Momentum(Strategy):
    """Long each symbol while its price is above that of `LOOKBACK` days ago."""

    def setup(self) -> None:
        self.add_nodes([self.position(symbol) for symbol in SYMBOLS])

    def position(self, symbol: str) -> Node:
        """Return the position node of one symbol."""
        price = StreamInput(tags=[symbol, "price"], interval="1d", period=LOOKBACK + 1)

        def held(view: CacheView) -> pd.DataFrame:
            close = view.as_frame(price, "1d", columns=["close"]).frame["close"]
            return pd.DataFrame({"position": (close > close.shift(LOOKBACK)).astype(float)})

        return Node(price, held, name=f"momentum {symbol}")
