"""Turn the rows of publisher nodes into orders, unless their bar is too old."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from qmtl_sdk.contracts.worlds import World
from qmtl_sdk.data.bars import NS, iso, to_ns
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.runtime.orders import OrderIntent, OrderPublisher
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

STALE_INTERVALS = 2
"""A bar older than this many of its intervals is too old to trade on."""

STALE_S = 5
"""Added to that limit, in seconds of wall time."""


class IntentBuilder:
    """Builds the order intents of a strategy's publisher nodes and passes them to the order publisher."""

    def __init__(self, nodes: Sequence[Node], world: World) -> None:
        replay = world.spec.clock.replay
        self._grace_s = STALE_S * (replay.speed if replay else 1)
        self._prices: dict[str, float] = {}
        self._markets = {
            node.node_id: node.markets() for node in nodes if isinstance(node, TradeOrderPublisherNode)
        }

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
        """Publish the orders of a row. `ts` is the bar's time in ns, `now` the world's time."""
        close = ts + node.interval * NS
        age_s = (to_ns(now) - close) / NS
        for key, row in node.rows(values).items():
            quantity = node.quantity(row)
            if not quantity:
                continue
            symbol, stream = self._markets[node.node_id][key]
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
