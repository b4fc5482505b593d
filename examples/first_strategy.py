"""Hold AAPL while its close is above its 50-day average."""

import pandas as pd

from qmtl_sdk import CacheView, Node, Runner, Strategy, StreamInput


class First(Strategy):
    def setup(self) -> None:
        price = StreamInput(tags=["AAPL", "price"], interval="1d", period=50)

        def trend(view: CacheView) -> pd.DataFrame:
            close = view.as_frame(price, "1d", columns=["close"]).frame["close"]
            return pd.DataFrame({"position": (close > close.rolling(50).mean()).astype(float)})

        self.add_nodes([Node(input=price, compute_fn=trend, name="trend")])


if __name__ == "__main__":
    print(Runner.submit(First, world="equities"))
