"""Bars, price paths and returns for tests of the SDK."""

import numpy as np

from qmtl_sdk.data.bars import NS, Bars
from qmtl_sdk.reports.returns import Returns

START = 1_700_000_040 // 60 * 60 * NS
DAY = 86_400


def bars(close: "list[float] | np.ndarray", interval: int = 60, start: int = START) -> Bars:
    values = np.asarray(close, dtype=float)
    return Bars(start + np.arange(len(values)) * interval * NS, {"close": values}, interval)


def walk(length: int, seed: int = 7) -> np.ndarray:
    return 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 1e-3, length)))


def series(values: list[float], positions: dict[str, list[float]] | None = None) -> Returns:
    held = {name: np.array(column) for name, column in (positions or {}).items()}
    weights = {name: 1 / len(held) for name in held}
    return Returns(np.arange(len(values), dtype="int64") * DAY * NS, np.array(values), DAY, held, weights, ())
