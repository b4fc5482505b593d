"""Turn the rows of publisher nodes into targets and orders."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np

from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, rounded
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.worlds import World
from qmtl_sdk.data.bars import CLOSE, NS, Bars, iso, to_ns
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.runtime.orders import OrderIntent, OrderPublisher, positive
from qmtl_sdk.runtime.targets import TargetIntent
from qmtl_sdk.transforms.columns import NOTIONAL, UNITS, WEIGHT
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

STALE_INTERVALS = 2
"""A bar older than this many of its intervals is too old to order on.

A target holds until the next one, so it may be as old as the data, whose silence closes the gate.
"""

STALE_S = 5
"""Added to that limit, in seconds of wall time."""

TARGETS = (UNITS, NOTIONAL, WEIGHT)
"""The columns of targets."""


class IntentBuilder:
    """Builds the targets and orders of publisher nodes, and passes them to the order publisher."""

    def __init__(self, nodes: Sequence[Node], world: World) -> None:
        replay = world.spec.clock.replay
        self._grace_s = STALE_S * (replay.speed if replay else 1)
        self._prices: dict[str, float] = {}
        self._owners: dict[str, str] = {}
        self._publishers = [node for node in nodes if isinstance(node, TradeOrderPublisherNode)]
        self._markets = {node.node_id: node.markets() for node in self._publishers}

    def set_price(self, node_id: str, price: float) -> None:
        """Set the newest close of a stream: the reference price of orders without a price of their own."""
        self._prices[node_id] = price

    def publish(
        self,
        publisher: OrderPublisher,
        node: TradeOrderPublisherNode,
        ts: int,
        values: Mapping[str, float],
        now: datetime,
    ) -> None:
        """Publish the targets and orders of a row. `ts` is the bar's time in ns, `now` the world's time.

        Raises QmtlError: E_COMPUTE_OUTPUT for a target that cannot be one; nothing of the row is published.
        """
        close = ts + node.interval * NS
        age_s = (to_ns(now) - close) / NS
        targets = list[TargetIntent]()
        for key, row in node.rows(values).items():
            symbol, stream = self._markets[node.node_id][key]
            if (target := self._target(node, row, (symbol, stream), close)) is not None:
                targets.append(target)
                continue
            quantity = node.quantity(row)
            if not quantity:
                continue
            price = row.get("price", self._prices.get(stream))
            intent = OrderIntent(
                node.node_id,
                ts,
                datetime.fromisoformat(iso(close)),
                symbol,
                quantity,
                None if price is None or math.isnan(price) else price,
            )
            if age_s > STALE_INTERVALS * node.interval + self._grace_s:
                publisher.withhold(intent, "the bar is too old to trade on")
            else:
                publisher.enqueue(intent)
        if targets:
            publisher.set_targets(targets)

    def restore(self, publisher: OrderPublisher, outputs: Mapping[str, NodeOutput]) -> None:
        """Set the targets that were decided last, from outputs by NodeID, and the last price of each stream.

        A strategy that starts in the middle gets to what it says. Raises QmtlError as `publish`.
        """
        for node_id, output in outputs.items():
            closes = output.bars.columns.get(CLOSE)
            if closes is not None and len(closes) and math.isfinite(closes[-1]):
                self.set_price(node_id, float(closes[-1]))
        targets = list[TargetIntent]()
        for node in self._publishers:
            known = outputs.get(node.node_id)
            for key, market in self._markets[node.node_id].items():
                found = _newest_target(known.bars, f"{key}." if key else "") if known else None
                if found is None:
                    continue
                ts, row = found
                if (target := self._target(node, row, market, ts + node.interval * NS)) is not None:
                    targets.append(target)
        if targets:
            publisher.set_targets(targets)

    def _target(
        self, node: TradeOrderPublisherNode, row: Mapping[str, float], market: tuple[str, str], close: int
    ) -> TargetIntent | None:
        """Return the target of a row of one symbol; None where it has none. Raises QmtlError."""
        symbol, stream = market
        found = node.target(symbol, row)
        if found is None or found.unit == "quantity":
            return None
        if self._owners.setdefault(symbol, node.node_id) != node.node_id:
            raise QmtlError(
                "E_COMPUTE_OUTPUT",
                f"two publishers of the strategy set a target of {symbol}",
                "publish each symbol's target by one node",
            )
        value = rounded(found.value)
        if abs(value) >= AMOUNT_LIMIT:
            raise QmtlError(
                "E_COMPUTE_OUTPUT",
                f"the target {found.unit} of {symbol} is {found.value}",
                "keep it below ten quadrillions",
            )
        price = float(found.price) if found.price is not None else self._prices.get(stream)
        return TargetIntent(
            symbol,
            datetime.fromisoformat(iso(close)),
            found.unit,
            value,
            positive(price),
            found.tradable,
        )


def _newest_target(bars: Bars, prefix: str) -> tuple[int, dict[str, float]] | None:
    """Return the newest row that has a target, with its time in ns; None where there is none.

    The names of its columns begin with `prefix`, which the row's names are without.
    """
    columns = {
        name.removeprefix(prefix): found for name, found in bars.columns.items() if name.startswith(prefix)
    }
    has = [np.isfinite(columns[name]) for name in TARGETS if name in columns]
    rows = np.flatnonzero(np.any(has, axis=0)) if has else np.empty(0, dtype="int64")
    if not len(rows):
        return None
    return int(bars.ts[rows[-1]]), {name: float(found[rows[-1]]) for name, found in columns.items()}
