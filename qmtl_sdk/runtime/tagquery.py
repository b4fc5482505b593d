"""Keeping tag queries up to date: which queues each finds, and their new rows. A queue that appears later is taken in while the strategy runs; the query's NodeID stays."""

import threading
import time
from collections.abc import Iterator

from qmtl_sdk.compute.live import LiveEngine
from qmtl_sdk.compute.series import Row
from qmtl_sdk.contracts.events import CloudEvent, QueueRef, TagQueryUpsert
from qmtl_sdk.contracts.sessions import QueueMessage
from qmtl_sdk.contracts.topic_state import TopicState
from qmtl_sdk.data.bars import NS
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.runtime.client import GatewayClient

GRACE_S = 1.0


class TagQueryManager:
    """Told of upserts on the stream's thread; everything else happens on the strategy's own."""

    def __init__(
        self, client: GatewayClient, engine: LiveEngine, world_id: str, execution_domain: str, own: set[str]
    ) -> None:
        self._client, self._engine, self.world_id, self._domain, self._own = (
            client,
            engine,
            world_id,
            execution_domain,
            own,
        )
        self.queries = engine.tag_queries
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[QueueRef, ...]] = {}
        self._places: dict[tuple[str, str], tuple[str, int]] = {}
        self._waiting: dict[str, dict[int, tuple[float, dict[str, Row]]]] = {
            query.node_id: {} for query in self.queries
        }

    def resolve(self) -> None:
        """Ask which queues there are now, for the queries of which the stream has said nothing yet: what it says later is newer."""
        for query in self.queries:
            params = query.params
            found = self._client.queues_by_tag(
                params["query_tags"], query.interval, params["match_mode"], self.world_id, self._domain
            )
            with self._lock:
                if query.node_id in self._wanted:
                    continue
                self._wanted[query.node_id] = tuple(
                    QueueRef(queue=item.topic, node_id=item.node_id, name=item.name) for item in found
                )

    def snapshot(self, state: TopicState) -> None:
        for event in state.events.values():
            self.hear(event)

    def hear(self, event: CloudEvent) -> None:
        """An event of the topic `queues`."""
        if event.type != "tagquery.upsert":
            return
        upsert = TagQueryUpsert.model_validate(event.data)
        for query in self.queries:
            params = query.params
            same = (
                sorted(upsert.tags),
                upsert.interval,
                upsert.match_mode,
                upsert.execution_domain.value,
            ) == (sorted(params["query_tags"]), query.interval, params["match_mode"], self._domain)
            if same:
                with self._lock:
                    self._wanted[query.node_id] = upsert.queues

    def queues_of(self, query: Node) -> int:
        return len(self._engine.upstreams(query))

    def due(self) -> Iterator[tuple[int, dict[str, dict[str, Row]]]]:
        """By close: the new rows of each query's queues. A bar waits a moment for the queues that do not have it yet."""
        for query in self.queries:
            self._refresh(query)
            waiting = self._waiting[query.node_id]
            for (query_id, node_id), (topic, place) in list(self._places.items()):
                if query_id != query.node_id:
                    continue
                read = self._client.queue_read(topic, place)
                self._places[(query_id, node_id)] = (topic, read.position)
                for message in read.messages:
                    waiting.setdefault(message.ts + query.interval * NS, (time.monotonic(), {}))[1][
                        node_id
                    ] = _row(message)
            everyone = set(self._engine.upstreams(query))
            for close in sorted(waiting):
                since, rows = waiting[close]
                if set(rows) < everyone and time.monotonic() - since < GRACE_S:
                    break
                del waiting[close]
                yield (
                    close,
                    {query.node_id: {node_id: row for node_id, row in rows.items() if node_id in everyone}},
                )

    def _refresh(self, query: Node) -> None:
        with self._lock:
            wanted = {
                item.node_id: item
                for item in self._wanted.get(query.node_id, ())
                if item.node_id not in self._own
            }
        there = set(self._engine.upstreams(query))
        for node_id in there - set(wanted):
            self._engine.remove_upstream(query, node_id)
            self._places.pop((query.node_id, node_id), None)
        for node_id in sorted(set(wanted) - there):
            item = wanted[node_id]
            read = self._client.queue_read(item.queue, 0, limit=query.period, last=True)
            rows = {message.ts: _row(message) for message in read.messages}
            self._engine.add_upstream(
                query, node_id, item.name or item.queue, [rows[ts] for ts in sorted(rows)]
            )
            self._places[(query.node_id, node_id)] = (item.queue, read.position)


def _row(message: QueueMessage) -> Row:
    return message.ts, {
        name: float("nan") if value is None else value for name, value in message.values.items()
    }
