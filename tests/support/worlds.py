"""Worlds and policies over the sample data."""

WORLD = {
    "world": "equities",
    "clock": {"replay": {"start": "2017-12-30T00:00:00Z", "speed": 0}},
    "data": {
        "presets": [
            {
                "name": "prices",
                "source": "parquet",
                "path": "sample:us_equities_1d.parquet",
                "interval": "1d",
                "calendar": "XNYS",
                "streams": {
                    name: [name, "price"] for name in ("AAPL", "JNJ", "JPM", "KO", "MSFT", "PG", "WMT", "XOM")
                },
            }
        ]
    },
    "execution": {"fee_bps": 0.5, "slippage_bps": 0.5},
}
FX = {
    "name": "fx",
    "source": "replay",
    "path": "sample:eurusd_1h.parquet",
    "interval": "1h",
    "calendar": "24/5",
    "streams": {"EURUSD": ["EURUSD", "price"]},
}
POLICY = {"selection": {"gates": {"and": ["sample_days >= 20", "sharpe >= -5"]}, "score": "sharpe"}}
PAPER = {
    **POLICY,
    "gating_policy": {"domains": {"from": "backtest", "to": "dryrun"}, "approvals": {"required": 0}},
}


def world(name: str = "equities") -> dict[str, object]:
    return {**WORLD, "world": name}
