"""From a signal to a target weight, with thresholds that do not flap."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial

import numpy as np

from qmtl_sdk.nodes.node import Node, Period
from qmtl_sdk.nodes.view import CacheView
from qmtl_sdk.transforms.columns import WEIGHT, option_error, require_between, require_nodes

MEMORY = 20
"""The default number of bars in which a position's last decision counts."""


@dataclass(frozen=True)
class Thresholds:
    """Where a signal enters and leaves positions.

    `short_enter` ≤ `short_exit` ≤ `long_exit` ≤ `long_enter`. Raises QmtlError: E_NODE_OPTION for another
    order.
    """

    long_enter: float
    long_exit: float
    short_enter: float
    short_exit: float

    def __post_init__(self) -> None:
        label = type(self).__name__
        require_between(label, asdict(self), -1e300, 1e300)
        ordered = self.short_enter <= self.short_exit <= self.long_exit <= self.long_enter
        if not ordered or self.short_enter == self.long_enter:
            raise option_error(
                label,
                f"long_enter {self.long_enter:g}, long_exit {self.long_exit:g}, short_exit "
                f"{self.short_exit:g} and short_enter {self.short_enter:g} do not descend",
                "a position is entered further out than it is left: long_enter >= long_exit >= short_exit "
                ">= short_enter",
            )


DEFAULT_THRESHOLDS = Thresholds(long_enter=0.6, long_exit=0.2, short_enter=-0.6, short_exit=-0.2)
"""Thresholds for a signal between -1 and 1."""


class PositionTargetNode(Node):
    """A signal's target weight: `long_weight`, `short_weight` or 0 (flat), in the column `target_weight`.

    A value at or above `long_enter` decides long, one at or below `long_exit` decides not long; one at or
    below `short_enter` decides short, one at or above `short_exit` not short. Between an exit and its entry,
    the newest decision of that side within the last `period` bars holds, and where there is none it is flat.
    So a signal that moves inside a band changes nothing, but a position that is not confirmed for `period`
    bars ends. A missing value decides nothing.

    The signal is the input's only column, or its `close`. `thresholds` may be a mapping of the four names of
    `Thresholds`. Long only: `short_weight=0`; the thresholds of the short side then decide nothing.

    Raises QmtlError: E_NODE_OPTION, and as `Node`.
    """

    def __init__(
        self,
        signal: Node,
        thresholds: Thresholds | Mapping[str, float] = DEFAULT_THRESHOLDS,
        *,
        long_weight: float = 1.0,
        short_weight: float = -1.0,
        period: Period = MEMORY,
        name: str = "target",
    ) -> None:
        require_nodes([signal], name, "signal")
        thresholds = _thresholds(thresholds, name)
        require_between(name, {"long_weight": long_weight}, 0, 1)
        require_between(name, {"short_weight": short_weight}, -1, 0)
        if long_weight == short_weight:
            raise option_error(name, "both weights are 0", "give it a long_weight or a short_weight")
        options = {**asdict(thresholds), "long_weight": long_weight, "short_weight": short_weight}
        super().__init__(signal, name=name, interval=signal.interval, period=period, params=options)
        weights = (float(long_weight), float(short_weight))
        self.compute_fn = partial(_target, thresholds=thresholds, weights=weights, period=self.period)
        self.signal = signal


def _thresholds(given: object, label: str) -> Thresholds:
    """Return thresholds that may be given as a mapping. Raises QmtlError: E_NODE_OPTION."""
    if isinstance(given, Thresholds):
        return given
    names = [field.name for field in fields(Thresholds)]
    if not isinstance(given, Mapping) or set(given) != set(names):
        call = ", ".join(f"{name}=…" for name in names)
        raise option_error(label, f"thresholds is {given!r}", f"pass Thresholds({call})")
    return Thresholds(**given)


def _target(
    view: CacheView, thresholds: Thresholds, weights: tuple[float, float], period: int
) -> dict[str, np.ndarray]:
    signal = view[next(iter(view))].values
    is_long = _held(signal >= thresholds.long_enter, signal <= thresholds.long_exit, period)
    is_short = _held(signal <= thresholds.short_enter, signal >= thresholds.short_exit, period)
    return {WEIGHT: np.where(is_long, weights[0], np.where(is_short, weights[1], 0.0))}


def _held(enters: np.ndarray, leaves: np.ndarray, period: int) -> np.ndarray:
    """Return where the newest of both within the last `period` rows is an entry.

    A row that is both is an entry.
    """
    rows = np.arange(len(enters))
    newest = np.maximum.accumulate(np.where(enters | leaves, rows, -1))
    found: np.ndarray = (newest > rows - period) & (newest >= 0) & enters[np.maximum(newest, 0)]
    return found
