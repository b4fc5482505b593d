"""The columns of targets, which pass from the signal's node to the publisher, and how nodes read them."""

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.nodes.view import Window

WEIGHT = "target_weight"
"""The position as a share of the strategy's capital, -1…1."""

NOTIONAL = "target_notional"
"""The position as an amount of money. Where it is present, it decides instead of the weight."""

UNITS = "target_units"
"""The position in units of the instrument. Where it is present, it decides instead of the others."""

QUANTITY = "quantity"
"""No target, but an order: a signed quantity to trade."""

PRICE = "price"
"""The reference price."""

TRADABLE = "tradable"
"""1 where the target may be traded, 0 where it is only held."""

CARRIED = (WEIGHT, NOTIONAL, UNITS, QUANTITY, PRICE, TRADABLE)
"""The columns that a node of a pipeline passes on. Others, such as `position`, stay where they are."""


def carried(window: Window) -> dict[str, np.ndarray]:
    """Return the columns of targets of a window, not copied."""
    return {name: window.columns[name] for name in CARRIED if name in window.columns}


class TargetNode(Node):
    """A node that passes on the target of another, `target`, changed or not."""

    target: Node


def weights(window: Window) -> np.ndarray:
    """Return the target weights of a window.

    Raises QmtlError: E_COLUMN_MISSING, and E_NODE_INPUT where another column decides instead of the weight.
    """
    deciding = next((name for name in (QUANTITY, UNITS, NOTIONAL) if name in window.columns), None)
    if deciding is not None:
        raise decided_error(window.label, deciding)
    return np.asarray(window[WEIGHT])


def joined(values: np.ndarray, window: Window, to: Window) -> np.ndarray:
    """Return a column of `window` at the rows of `to`: what had closed by then, NaN before the first."""
    at = np.searchsorted(window.ts + window.interval * NS, to.ts + to.interval * NS, side="right") - 1
    found: np.ndarray = np.where(at >= 0, values[np.maximum(at, 0)], np.nan) if len(values) else at * np.nan
    return found


def trailing(values: np.ndarray, length: int) -> list[np.ndarray]:
    """Return the last `length` values of each row, the oldest first: an array for each age.

    Before the data, they are NaN. Nodes add them up one after the other, so that a row has the same sum, to
    the last bit, in batch and in a window of its own.
    """
    padded = np.concatenate([np.full(length - 1, np.nan), values])
    return [padded[age : age + len(values)] for age in range(length)]


def require_nodes(nodes: Sequence[object], label: str, what: str) -> None:
    """Raise QmtlError (E_NODE_INPUT) where one is not a node."""
    for node in nodes:
        if not isinstance(node, Node):
            raise QmtlError(
                "E_NODE_INPUT", f"{label} has {node!r} as its {what}, which is not a node", "pass a node"
            )


def decided_error(label: str, column: str) -> QmtlError:
    """Return the error of a target whose weight is limited or sized though another column decides."""
    return QmtlError(
        "E_NODE_INPUT",
        f"{label} has {column}, which decides instead of {WEIGHT}",
        "put RiskControlNode and TimingGateNode before SizingNode(initial_cash=…), and size a weight once; "
        "limit amounts of your own where they are computed",
    )


def option_error(label: str, fault: str, remedy: str) -> QmtlError:
    """Return the error of an option of a node that can't be used."""
    return QmtlError("E_NODE_OPTION", f"{label}: {fault}", remedy)


def require_between(label: str, values: Mapping[str, float], least: float, most: float) -> None:
    """Raise QmtlError (E_NODE_OPTION) where a value is not a number from `least` to `most`."""
    for name, value in values.items():
        if not _is_number(value) or not least <= value <= most:
            raise option_error(label, f"{name} is {value!r}", f"keep it between {least:g} and {most:g}")


def require_positive(label: str, values: Mapping[str, object], most: float) -> None:
    """Raise QmtlError (E_NODE_OPTION) where a value is not a number above 0 and at most `most`."""
    for name, value in values.items():
        if not _is_number(value) or not 0 < value <= most:
            raise option_error(label, f"{name} is {value!r}", f"keep it above 0 and at most {most:g}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
