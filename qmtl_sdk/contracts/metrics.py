"""The metrics that a policy may name. The service computes them from the uploaded returns."""

from qmtl_sdk.contracts.registry import Registry

_MODULE = "qmtl_sdk.reports.metrics"

METRICS = Registry(
    "qmtl.metrics",
    "metric",
    {
        name: f"{_MODULE}:{name}"
        for name in (
            "sharpe",
            "max_drawdown",
            "linearity",
            "win_rate",
            "ulcer",
            "turnover",
            "trades",
            "sample_days",
            "total_return",
            "annual_return",
            "annual_volatility",
            "gross_long",
            "gross_short",
            "leverage",
        )
    },
    unknown="E_METRIC_UNKNOWN",
)
"""Each is a `qmtl_sdk.reports.metrics.Metric`."""
