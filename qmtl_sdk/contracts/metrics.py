"""The metrics that a policy may name. The service computes them from the uploaded returns."""

METRICS: dict[str, str] = {
    "sharpe": "annualised Sharpe ratio: mean(r) / std(r, ddof 1) · √(periods a year)",
    "max_drawdown": "largest fall of compounded equity from its running peak, as a positive fraction",
    "linearity": "R² of a straight line through cumulative log equity; 0 when it falls",
    "win_rate": "share of the bars with a non-zero return that gained",
    "ulcer": "ulcer index: root mean square of the drawdown, as a fraction",
    "turnover": "weighted absolute change of position a year",
    "trades": "number of changes of position, over all instruments",
    "sample_days": "number of UTC days that have a return",
    "total_return": "compounded return over the sample, as a fraction",
    "annual_return": "mean return of a bar · periods a year, as a fraction",
    "annual_volatility": "std(r, ddof 1) · √(periods a year), as a fraction",
    "gross_long": "mean over the sample of the weighted long positions, as a fraction",
    "gross_short": "mean over the sample of the weighted short positions, as a positive fraction",
    "leverage": "largest sum of the weighted absolute positions, as a fraction",
}
"""The formula of each metric; r are the returns of the bars."""
