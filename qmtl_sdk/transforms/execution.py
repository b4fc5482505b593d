"""From a target to what is published: sized for an instrument, with the way in which its orders are sent.

A target that is published is not an order: the service orders what the strategy's position lacks.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial

import numpy as np

from qmtl_sdk.brokerage.models import ExecutionModel
from qmtl_sdk.contracts.dag import upstream
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.nodes.view import CacheView
from qmtl_sdk.transforms.columns import (
    NOTIONAL,
    PRICE,
    TargetNode,
    carried,
    decided_error,
    joined,
    option_error,
    require_nodes,
    require_positive,
    weights,
)

_MOST_CASH = 1e15


class SizingNode(TargetNode):
    """A target of one instrument, with its reference price in the column `price`.

    `price`: the node of the instrument's prices: its only column, or its `close`. Returns are measured on the
    price stream that it derives from, whatever the signal reads. Without `initial_cash` the weight is a share
    of the strategy's capital, which the world gives; with it, of this amount, which the rows have as
    `target_notional`. That decides instead of the weight, so nodes that limit or gate weights come before.

    Raises QmtlError: E_NODE_OPTION without a symbol or with another `initial_cash` than one above 0,
    E_NODE_INPUT at the first bar where it is to size a target that has an amount, and as `Node`.
    """

    def __init__(
        self,
        target: Node,
        price: Node,
        *,
        symbol: str,
        initial_cash: float | Decimal | None = None,
        name: str = "sizing",
    ) -> None:
        require_nodes([target], name, "target")
        require_nodes([price], name, "price")
        if not symbol or not isinstance(symbol, str):
            raise option_error(name, "it has no symbol", "name the instrument: symbol='AAPL'")
        if isinstance(initial_cash, Decimal) and initial_cash.is_finite():
            initial_cash = float(initial_cash)
        if initial_cash is not None:
            require_positive(name, {"initial_cash": initial_cash}, _MOST_CASH)
        cash = None if initial_cash is None else float(initial_cash)
        super().__init__(
            [target, price],
            partial(_sized, target=target, price=price, cash=cash),
            name=name,
            interval=target.interval,
            period=1,
            params={"symbol": symbol, **({} if cash is None else {"initial_cash": cash})},
        )
        self.target = target
        self.price = price
        self.symbol = symbol
        self.initial_cash = cash


class ExecutionNode(TargetNode):
    """A target with the way in which its orders are sent: order type, time in force, costs (`model`).

    Its rows are those of the target. Only the backtest (`reports.backtest`) reads the model. Orders of a
    running strategy follow the rules of its world's `instruments`.
    """

    def __init__(self, target: Node, model: ExecutionModel | None = None, *, name: str = "execution") -> None:
        require_nodes([target], name, "target")
        if model is not None and not isinstance(model, ExecutionModel):
            raise option_error(name, f"{model!r} is not an ExecutionModel", "pass ExecutionModel(…)")
        self.model = model or ExecutionModel()
        super().__init__(
            target, _passed, name=name, interval=target.interval, period=1, params=self.model.params()
        )
        self.target = target


def chain(node: Node) -> Iterator[Node]:
    """Yield a node and the nodes whose target it passes on, back to the first."""
    yield node
    while isinstance(node, TargetNode):
        node = node.target
        yield node


def sizing_of(node: Node) -> SizingNode | None:
    """Return the node that sized a target; None where none did."""
    return next((found for found in chain(node) if isinstance(found, SizingNode)), None)


def require_weights(targets: Sequence[Node]) -> None:
    """Raise QmtlError (E_NODE_INPUT) where a target is sized by an amount, which decides, not its weight."""
    for target in targets:
        for node in chain(target):
            if isinstance(node, SizingNode) and node.initial_cash is not None:
                raise decided_error(node.label, NOTIONAL)


def model_of(node: Node) -> ExecutionModel:
    """Return how the orders of a target are sent and filled: plain where no node says so."""
    return next((found.model for found in chain(node) if isinstance(found, ExecutionNode)), ExecutionModel())


def price_streams(node: Node) -> list[StreamInput]:
    """Return the streams that a target's prices come from: those of its sizing, or all that it reads."""
    sizing = sizing_of(node)
    read = upstream([sizing.price if sizing else node], lambda parent: parent.inputs)
    return [found for found in read if isinstance(found, StreamInput)]


def _sized(view: CacheView, target: Node, price: Node, cash: float | None) -> dict[str, np.ndarray]:
    window = view[target]
    columns = {**carried(window), PRICE: joined(view[price].values, view[price], window)}
    return columns if cash is None else {**columns, NOTIONAL: weights(window) * cash}


def _passed(view: CacheView) -> dict[str, np.ndarray]:
    return carried(view[next(iter(view))])
