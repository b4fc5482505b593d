"""The demo's worlds and their policies: one judges, one runs replayed time, one trades, two share capital."""

from datetime import datetime
from typing import Any

from qmtl_sdk.contracts.canonical import hash_of

Mapping = dict[str, Any]
"""A world or policy as YAML would have it."""

SYMBOLS = ("AAPL", "JNJ", "JPM", "KO", "MSFT", "PG", "WMT", "XOM")

EQUITIES: Mapping = {
    "name": "us_equities",
    "source": "replay",
    "path": "sample:us_equities_1d.parquet",
    "interval": "1d",
    "calendar": "XNYS",
    "streams": {name: [name, "price"] for name in SYMBOLS},
}
FX: Mapping = {
    "name": "fx",
    "source": "replay",
    "path": "sample:eurusd_1h.parquet",
    "interval": "1h",
    "calendar": "24/5",
    "streams": {"EURUSD": ["EURUSD", "price"]},
}

JUDGING_POLICY: Mapping = {
    "data_currency": {"max_lag": "5d", "min_history": "250d"},
    "selection": {
        "gates": {"and": ["sample_days >= 250", "trades >= 20", "sharpe >= 0.6", "max_drawdown <= 0.35"]},
        "score": "sharpe + 0.1*win_rate - 0.2*ulcer",
        "topk": {"total": 2},
    },
}
RUNNING_POLICY: Mapping = {
    "selection": {"score": "sample_days"},
    "gating_policy": {"domains": {"from": "backtest", "to": "dryrun"}, "approvals": {"required": 0}},
}
TRADING_POLICY: Mapping = {
    "selection": {"gates": {"and": ["trades >= 20"]}, "score": "sample_days"},
    "decision_ttl": 3600,
}


SHARING_POLICY: Mapping = {"selection": {"score": "sample_days"}, "decision_ttl": 3600}


def judging_world(now: datetime) -> Mapping:
    """Return the world that judges: sample prices at the end of 2017.

    Its name holds the day, because a replay clock that has run for days is past the sample prices, and a hash
    of its content, because another version's demo needs another world.
    """
    spec = {
        "description": "sample prices, replayed from the end of 2017",
        "clock": {"replay": {"start": "2017-12-30T00:00:00Z", "speed": 1}},
        "data": {"presets": [EQUITIES, FX]},
        "execution": {"fee_bps": 0.2, "slippage_bps": 0.3},
    }
    content = hash_of({"spec": spec, "policy": JUDGING_POLICY}).removeprefix("blake3:")[:6]
    return {"world": f"demo_{now:%Y%m%d}_{content}", **spec}


def running_world(now: datetime) -> Mapping:
    """Return the world that runs: hours of EUR/USD, six per second.

    Its name holds the time, because its clock must be at its start.
    """
    return {
        "world": f"demo_running_{now:%Y%m%d_%H%M%S}",
        "description": "paper trading, replayed",
        "clock": {"replay": {"start": "2017-06-06T00:00:00Z", "speed": 6 * 3600}},
        "data": {"presets": [FX]},
    }


def trading_world(now: datetime) -> Mapping:
    """Return the world that trades: hours of EUR/USD, ten per second. Live in a replay world is on paper."""
    return {
        "world": f"demo_trading_{now:%Y%m%d_%H%M%S}",
        "description": "replayed hours, from judgment to live on paper",
        "clock": {"replay": {"start": "2017-04-03T00:00:00Z", "speed": 36_000}},
        "data": {"presets": [FX]},
        "capital": {"amount": "20000", "currency": "USD"},
        "instruments": {"lot": "1"},
        "allow_live": True,
    }


def sharing_worlds(now: datetime) -> list[Mapping]:
    """Return two worlds that share the capital: hours of EUR/USD, ten per second."""
    return [
        {
            "world": f"demo_{name}_{now:%Y%m%d_%H%M%S}",
            "description": "replayed hours, with a share of the capital",
            "clock": {"replay": {"start": "2017-04-03T00:00:00Z", "speed": 36_000}},
            "data": {"presets": [FX]},
            "capital": {"amount": amount, "currency": "USD"},
            "instruments": {"lot": "1"},
        }
        for name, amount in (("core", "60000"), ("side", "20000"))
    ]


def with_promotion(policy: Mapping, fingerprint: str) -> Mapping:
    """Add what a promotion needs: the pinned data, the furthest stage, and how many people must approve."""
    gating = {
        "domains": {"from": "backtest", "to": "live"},
        "dataset_fingerprint": fingerprint,
        "share_policy": "feature-artifacts-only",
        "approvals": {"required": 1, "live": 2},
        "apply": {"freeze_timeout_ms": 5000, "drain_timeout_ms": 5000},
    }
    return {**policy, "gating_policy": gating}
