"""The node that publishes a strategy's orders. Whether an order is sent is decided by `runtime.orders`."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from qmtl_sdk.brokerage.models import as_decimal
from qmtl_sdk.brokerage.targets import CloseTarget, CloseUnit
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.nodes.view import CacheView, Window
from qmtl_sdk.transforms.columns import (
    NOTIONAL,
    PRICE,
    QUANTITY,
    TRADABLE,
    UNITS,
    WEIGHT,
    carried,
    option_error,
    require_nodes,
)
from qmtl_sdk.transforms.execution import price_streams, sizing_of

SIDES = {"BUY", "SELL"}
"""The actions of an order that is fed by hand."""

ORDER = ("quantity", "price")
"""The columns of an order that a running strategy publishes."""


TARGET_UNITS: dict[str, CloseUnit] = {
    QUANTITY: "quantity",
    UNITS: "units",
    NOTIONAL: "notional",
    WEIGHT: "weight",
}
"""What each column of a target means. The first that a row has decides."""


MAX_SYMBOLS = 66
"""Symbols of one publisher: a row of a queue has at most 200 columns, and each symbol takes three."""


class TradeOrderPublisherNode(Node):
    """Publishes the newest row of its input as an order or a target.

    A row has one of `target_weight` (-1…1), `target_notional` and `target_units`, which say what the strategy
    wants to hold, or `quantity`, an order in a running strategy (signed: positive buys; 0 or missing is no
    order); and optionally `price`. `symbol` is the instrument to trade; it defaults to that of the one price
    stream that the input derives from. For many instruments, `input` maps each symbol to its node, and a row
    has the columns `SYMBOL.target_weight` and so on. A row that is fed by hand has `action` (BUY or SELL) and
    `size`.

    Raises QmtlError: E_NODE_OPTION for a mapping without symbols or with `symbol`, and as `Node`.
    """

    def __init__(self, input: Node | Mapping[str, Node], *, symbol: str = "", name: str = "orders") -> None:
        self.sources: dict[str, Node] = dict(sorted(input.items())) if isinstance(input, Mapping) else {}
        self.symbol = symbol
        if not isinstance(input, Mapping):
            super().__init__(
                input, _newest_order, name=name, period=1, params={"symbol": symbol} if symbol else None
            )
            return
        require_nodes(list(self.sources.values()), name, "input")
        if symbol or not self.sources or not all(self.sources):
            raise option_error(
                name,
                "its instruments are not named once each",
                "map each symbol to its node, without symbol=",
            )
        if len(self.sources) > MAX_SYMBOLS:
            raise option_error(
                name,
                f"it publishes {len(self.sources)} symbols, of at most {MAX_SYMBOLS}",
                "use several publishers",
            )
        inputs = {node.node_id: node for node in self.sources.values()}
        super().__init__(
            list(inputs.values()),
            partial(_newest_rows, sources=self.sources),
            name=name,
            interval=min(node.interval for node in inputs.values()),
            period=1,
            params={"symbols": list(self.sources)},
        )

    def rows(self, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Split a row by symbol; the only one of a node with a single input is `""`."""
        if not self.sources:
            return {"": dict(values)}
        found: dict[str, dict[str, float]] = {symbol: {} for symbol in self.sources}
        for name, value in values.items():
            symbol, _, column = name.rpartition(".")
            found[symbol][column] = value
        return found

    def markets(self) -> dict[str, tuple[str, str]]:
        """Return the symbol that each of its `rows` trades, and the NodeID of the stream with its price.

        Raises QmtlError: E_NODE_INPUT where neither the node nor its streams determine the symbol.
        """
        if not self.sources:
            return {"": self._market(self.symbol, self.inputs[0])}
        return {symbol: self._market(symbol, source) for symbol, source in self.sources.items()}

    def _market(self, symbol: str, source: Node) -> tuple[str, str]:
        sizing = sizing_of(source)
        symbol = symbol or (sizing.symbol if sizing else "")
        streams = {stream.node_id: stream for stream in price_streams(source)}
        if len(streams) == 1:
            stream = next(iter(streams.values()))
            return symbol or (stream.tags[0] if stream.tags else stream.label), stream.node_id
        if symbol:
            return symbol, next((key for key, stream in streams.items() if symbol in stream.tags), "")
        raise QmtlError(
            "E_NODE_INPUT",
            f"{self.label} derives from {len(streams)} streams and names no symbol",
            "name it: TradeOrderPublisherNode(…, symbol=…)",
            node=self.node_id,
        )

    @staticmethod
    def target(symbol: str, row: Mapping[str, float]) -> CloseTarget | None:
        """Return what a row of one symbol wants; None where it says nothing.

        Raises QmtlError: E_COMPUTE_OUTPUT for a weight beyond 1.
        """
        column = next((name for name in TARGET_UNITS if math.isfinite(row.get(name, math.nan))), None)
        if column is None:
            return None
        if column == WEIGHT and abs(row[WEIGHT]) > 1:
            raise QmtlError(
                "E_COMPUTE_OUTPUT",
                f"the target weight of {symbol} is {row[WEIGHT]:g}",
                "keep it between -1 and 1",
            )
        price = row.get(PRICE, math.nan)
        return CloseTarget(
            symbol,
            TARGET_UNITS[column],
            as_decimal(row[column]),
            as_decimal(price) if math.isfinite(price) else None,
            tradable=row.get(TRADABLE, 1.0) != 0,
        )

    @staticmethod
    def quantity(row: Mapping[str, float]) -> float:
        """Return the signed quantity to trade; 0 for a row without an order."""
        found = row.get("quantity", 0.0)
        return found if math.isfinite(found) else 0.0

    @staticmethod
    def order(payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the order in a row that was fed by hand; None for a row without an order."""
        side = str(payload.get("action", "")).upper()
        size = payload.get("size")
        if side not in SIDES or not isinstance(size, int | float) or isinstance(size, bool) or not size > 0:
            return None
        return {**payload, "action": side, "size": float(size)}


def _newest_order(view: CacheView) -> dict[str, float]:
    window = view[next(iter(view))]
    # A column `position` beside `quantity` is left to the input: it would count as a second instrument here.
    wanted = ORDER if "quantity" in window.columns else tuple(window.columns)
    return {name: float(window.columns[name][-1]) for name in wanted if name in window.columns}


def _newest_rows(view: CacheView, sources: Mapping[str, Node]) -> dict[str, float]:
    """Return the row of each symbol at the newest bar; a symbol without a bar there is missing."""
    windows = {symbol: view[node] for symbol, node in sources.items()}
    newest = max(window.ts[-1] + window.interval * NS for window in windows.values())
    return {
        f"{symbol}.{name}": float(values[-1]) if window.ts[-1] + window.interval * NS == newest else math.nan
        for symbol, window in windows.items()
        for name, values in _published(window).items()
    }


def _published(window: Window) -> dict[str, np.ndarray]:
    """Return the column that decides, the price, and whether it may be traded."""
    columns = carried(window)
    wanted = [*[name for name in TARGET_UNITS if name in columns][:1], PRICE, TRADABLE]
    return {name: columns[name] for name in wanted if name in columns}
