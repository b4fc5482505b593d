"""Metrics of a returns series. Simple returns r a bar, p periods a year; each formula stands in `contracts.metrics.METRICS`.

Worked: returns +10 %, −50 %, +20 % → equity 1.10, 0.55, 0.66; maximum drawdown 0.5.
"""

import numpy as np

from qmtl_sdk.contracts.metrics import METRICS
from qmtl_sdk.data.bars import NS
from qmtl_sdk.reports.returns import Returns

_DAY_NS = 86_400 * NS


def equity(r: np.ndarray) -> np.ndarray:
    """Compounded equity from 1, after each bar."""
    return np.cumprod(1.0 + r)


def drawdown(r: np.ndarray) -> np.ndarray:
    """The fall from the running peak after each bar, as a positive fraction. The peak starts at 1."""
    curve = equity(r)
    return 1.0 - curve / np.maximum(np.maximum.accumulate(curve), 1.0)


def sharpe(r: np.ndarray, periods: float) -> float | None:
    """None where the deviation is 0 or there are fewer than two returns."""
    deviation = _std(r)
    return None if not deviation else float(r.mean() / deviation * np.sqrt(periods))


def linearity(r: np.ndarray) -> float | None:
    """R² of a straight line through cumulative log equity; 0 when it falls; None below two returns."""
    if len(r) < 2:
        return None
    curve = np.log(equity(r))
    x = np.arange(len(curve)) - (len(curve) - 1) / 2
    y = curve - curve.mean()
    slope, total = float(x @ y / (x @ x)), float(y @ y)
    return 0.0 if slope <= 0 or total <= 0 else float(slope * slope * (x @ x) / total)


def measure(returns: Returns, periods: float) -> dict[str, float | None]:
    """Every metric of `METRICS`; None where it is not defined, such as trades of a series without positions."""
    r = returns.values
    falls, years, moved = drawdown(r), len(r) / periods, r[r != 0]
    deviation = _std(r)
    trades = turnover = gross_long = gross_short = leverage = None
    if returns.positions:
        changes = {
            name: np.abs(np.diff(position, prepend=0.0)) for name, position in returns.positions.items()
        }
        trades = float(sum(np.count_nonzero(change) for change in changes.values()))
        turnover = float(
            sum(abs(returns.weights[name]) * change.sum() for name, change in changes.items()) / years
        )
        held = [returns.weights[name] * position for name, position in returns.positions.items()]
        gross_long = float(sum(np.maximum(position, 0.0) for position in held).mean())
        gross_short = float(sum(np.maximum(-position, 0.0) for position in held).mean())
        leverage = float(sum(np.abs(position) for position in held).max())
    found: dict[str, float | None] = {
        "sharpe": sharpe(r, periods),
        "max_drawdown": float(falls.max()),
        "linearity": linearity(r),
        "win_rate": float((moved > 0).mean()) if len(moved) else None,
        "ulcer": float(np.sqrt(np.mean(falls**2))),
        "turnover": turnover,
        "trades": trades,
        "sample_days": float(len(np.unique(returns.ts // _DAY_NS))),
        "total_return": float(equity(r)[-1] - 1.0),
        "annual_return": float(r.mean() * periods),
        "annual_volatility": None if deviation is None else float(deviation * np.sqrt(periods)),
        "gross_long": gross_long,
        "gross_short": gross_short,
        "leverage": leverage,
    }
    assert found.keys() == METRICS.keys()
    return found


def _std(r: np.ndarray) -> float | None:
    """Sample deviation; 0 for a constant series, whatever rounding makes of it."""
    if len(r) < 2:
        return None
    return 0.0 if np.ptp(r) == 0 else float(r.std(ddof=1))
