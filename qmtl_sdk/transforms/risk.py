"""Limits on target weights: position, portfolio, volatility, drawdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from qmtl_sdk.nodes.node import Node
from qmtl_sdk.nodes.view import CacheView
from qmtl_sdk.transforms.columns import (
    WEIGHT,
    TargetNode,
    carried,
    joined,
    option_error,
    require_between,
    require_nodes,
    require_positive,
    trailing,
    weights,
)
from qmtl_sdk.transforms.execution import require_weights

_LONGEST = 100_000


@dataclass(frozen=True)
class RiskLimits:
    """Limits on a target weight, applied in this order; None: no limit.

    - `max_position`: the largest absolute weight.
    - `max_gross`: the largest sum of absolute weights of the portfolio; beyond it, all are scaled down.
    - `max_volatility`: the largest standard deviation of a bar's return, weight included, measured over the
      instrument's last `volatility_window` bars; beyond it, the weight is scaled down.
    - `max_drawdown`: the largest fall, as a fraction (0.2 is 20 %), that the limited weights have taken from
      a peak within the last `drawdown_window` bars; at it and beyond, the weight is 0. It is measured on
      weights before this limit, so that it ends when the fall has left the window.

    Raises QmtlError: E_NODE_OPTION.
    """

    max_position: float | None = None
    max_gross: float | None = None
    max_volatility: float | None = None
    max_drawdown: float | None = None
    volatility_window: int = 20
    drawdown_window: int = 60

    def __post_init__(self) -> None:
        label = type(self).__name__
        limits = {name: value for name, value in asdict(self).items() if name.startswith("max_")}
        given = {name: value for name, value in limits.items() if value is not None}
        if not given:
            raise option_error(label, "it limits nothing", f"give at least one of {', '.join(limits)}")
        for name, value in given.items():
            require_positive(label, {name: value}, 1 if name == "max_drawdown" else 1000)
        windows = {name: value for name, value in asdict(self).items() if name.endswith("_window")}
        require_between(label, windows, 2, _LONGEST)

    @property
    def period(self) -> int:
        """The bars that the limits look at. A fall is one of weights that each need their own volatility."""
        volatility = self.volatility_window if self.max_volatility is not None else 0
        return 1 + volatility + (self.drawdown_window if self.max_drawdown is not None else 0)


class RiskControlNode(TargetNode):
    """Target weights within `limits`; other columns of the target are passed on.

    `price`: the instrument's prices, for volatility and drawdown. `portfolio`: the targets of all symbols
    that `max_gross` adds up, this one's among them or not; each counts with at most `max_position`.

    Raises QmtlError: E_NODE_OPTION where a limit lacks its `price` or `portfolio`, E_NODE_INPUT where a
    target has an amount that decides instead of its weight (after `SizingNode(initial_cash=…)`; at the first
    bar where a node of another kind gives it), and as `Node`.
    """

    def __init__(
        self,
        target: Node,
        limits: RiskLimits,
        *,
        price: Node | None = None,
        portfolio: Sequence[Node] = (),
        name: str = "risk",
    ) -> None:
        require_nodes([target, *portfolio, *([price] if price is not None else [])], name, "input")
        if not isinstance(limits, RiskLimits):
            raise option_error(name, f"its limits are {limits!r}", "pass RiskLimits(max_position=…)")
        require_weights([target, *portfolio])
        if price is None and (limits.max_volatility is not None or limits.max_drawdown is not None):
            raise option_error(name, "volatility and drawdown are measured on prices", "pass price=")
        if not portfolio and limits.max_gross is not None:
            raise option_error(name, "max_gross adds up a portfolio", "pass portfolio=, the targets of it")
        if any(node.interval != target.interval for node in (*portfolio, *([price] if price else []))):
            raise option_error(
                name,
                f"its inputs have other intervals than its target's {target.interval} s",
                "windows are counted in bars: pass nodes of the target's interval",
            )
        unique = {node.node_id: node for node in (target, *portfolio)}
        others = [unique[node_id] for node_id in sorted(unique)] if portfolio else [target]
        inputs = {node.node_id: node for node in (target, *others, *([price] if price is not None else []))}
        super().__init__(
            list(inputs.values()),
            partial(_limited, target=target, price=price, portfolio=others, limits=limits),
            name=name,
            interval=target.interval,
            period=limits.period,
            params={key: value for key, value in asdict(limits).items() if value is not None},
        )
        self.target = target


def _limited(
    view: CacheView, target: Node, price: Node | None, portfolio: list[Node], limits: RiskLimits
) -> dict[str, np.ndarray]:
    window = view[target]
    most = np.inf if limits.max_position is None else limits.max_position
    weight = np.clip(weights(window), -most, most)
    if limits.max_gross is not None:
        gross = np.zeros(len(window))
        for node in portfolio:
            other = np.clip(joined(weights(view[node]), view[node], window), -most, most)
            gross = gross + np.nan_to_num(np.abs(other), nan=0.0)
        weight = np.where(gross > limits.max_gross, weight * (limits.max_gross / gross), weight)
    if price is not None:
        close = joined(view[price].values, view[price], window)
        if limits.max_volatility is not None:
            risk = np.abs(weight) * _volatility(close, limits.volatility_window)
            weight = np.where(risk > limits.max_volatility, weight * (limits.max_volatility / risk), weight)
        if limits.max_drawdown is not None:
            fallen = _drawdown(weight, close, limits.drawdown_window)
            weight = np.where(fallen >= limits.max_drawdown, 0.0, weight)
    return {**carried(window), WEIGHT: weight}


def _changes(close: np.ndarray, length: int) -> list[np.ndarray]:
    """Return the last `length` returns of each row; 0 across a missing close, then the whole move."""
    ages = trailing(close, length + 1)
    last, found = ages[0], []
    for now in ages[1:]:
        found.append(np.nan_to_num(now / last - 1, nan=0.0, posinf=0.0, neginf=0.0))
        last = np.where(np.isnan(now), last, now)
    return found


def _volatility(close: np.ndarray, length: int) -> np.ndarray:
    """Return the standard deviation (ddof 1) of the last `length` returns at each row."""
    changes = _changes(close, length)
    mean = sum(changes, np.zeros(len(close))) / length
    squares = sum(((change - mean) ** 2 for change in changes), np.zeros(len(close)))
    found: np.ndarray = np.sqrt(squares / (length - 1))
    return found


def _drawdown(weight: np.ndarray, close: np.ndarray, length: int) -> np.ndarray:
    """Return how far the equity of the weights is below its peak of the last `length` bars, as a fraction."""
    equity = np.ones(len(close))
    peak = equity
    held = np.nan_to_num(weight, nan=0.0)
    for decided, change in zip(trailing(held, length + 1), _changes(close, length), strict=False):
        equity = equity * (1 + np.nan_to_num(decided, nan=0.0) * change)
        peak = np.maximum(peak, equity)
    found: np.ndarray = 1 - equity / peak
    return found
