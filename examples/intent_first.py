"""Say how much of AAPL to hold: its returns are measured and judged, and running, it is ordered."""

import pandas as pd

from qmtl_sdk import (
    CacheView,
    ExecutionModel,
    FillModel,
    Node,
    Runner,
    Strategy,
    StreamInput,
    make_intent_first_nodeset,
)

DAYS = 60


class IntentFirst(Strategy):
    """Long while the trend is strong: by default, from where it is above 0.6 until it is below 0.2."""

    def setup(self) -> None:
        price = StreamInput(tags=["AAPL", "price"], interval="1d", period=DAYS)

        def trend(view: CacheView) -> pd.DataFrame:
            close = view[price].frame["close"]
            window = close.rolling(DAYS)
            score = (close - window.mean()) / (2 * window.std())
            return pd.DataFrame({"trend": score.clip(-1, 1)})

        nodeset = make_intent_first_nodeset(
            Node(price, trend, name="trend"),
            self.world_id,
            symbol="AAPL",
            price_node=price,
            long_weight=1.0,
            short_weight=0,  # long only
            # For qmtl_sdk.reports.backtest. A running strategy's orders follow the world's `instruments`.
            execution_model=ExecutionModel(fills=FillModel(slippage_bps=2, lot=1)),
        )
        self.add_nodeset(nodeset)


if __name__ == "__main__":
    print(Runner.submit(IntentFirst, world="equities"))
