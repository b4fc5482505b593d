import pandas as pd

from qmtl_sdk import Node, Runner, Strategy, StreamInput


class First(Strategy):
    def setup(self):
        price = StreamInput(tags=["AAPL", "price"], interval="1d", period=50)

        def trend(view) -> pd.DataFrame:
            close = view.as_frame(price, "1d", columns=["close"]).frame["close"]
            return pd.DataFrame({"position": (close > close.rolling(50).mean()).astype(float)})

        self.add_nodes([Node(input=price, compute_fn=trend, name="trend")])


if __name__ == "__main__":
    print(Runner.submit(First, world="equities"))
