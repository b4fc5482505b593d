"""Keep tag queries up to date: the queues that each matches, and the new rows of those queues.

A queue that appears later is added while the strategy runs; the query's NodeID does not change.
"""

import threading
import time
from collections.abc import Callable, Iterator

from qmtl_sdk.compute.live import LiveEngine
from qmtl_sdk.compute.series import Row
from qmtl_sdk.contracts.events import CloudEvent, QueueRef, TagQueryUpsert
from qmtl_sdk.contracts.sessions import QueueMessage, SessionGrant
from qmtl_sdk.data.bars import NS
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.running import SessionKey

READ_INTERVAL_S = 0.25
"""How often the queues are read, in seconds."""

GRACE_S = 1.0
"""How long a bar waits for queues that have no row for it yet, in seconds."""


class TagQueryManager:
    """Reads the queues of a strategy's tag queries.

    `handle` runs on the stream's thread, everything else on the strategy's thread.
    """

    def __init__(
        self,
        client: GatewayClient,
        engine: LiveEngine,
        grant: SessionGrant,
        session: Callable[[], SessionKey],
        own: set[str],
    ) -> None:
        self.world_id = grant.world_id
        self._client = client
        self._engine = engine
        self._domain = grant.context.execution_domain.value
        self._session = session
        self._own = own
        self.queries = engine.tag_queries
        self._resolved = False
        self._next_read = 0.0
        self._lock = threading.Lock()
        self._matches: dict[str, tuple[QueueRef, ...]] = {}
        self._positions: dict[tuple[str, str], tuple[str, int]] = {}
        self._waiting: dict[str, dict[int, tuple[float, dict[str, Row]]]] = {
            query.node_id: {} for query in self.queries
        }

    def resolve(self) -> None:
        """Request the current queues of each query, unless the stream has already delivered newer ones."""
        for query in self.queries:
            params = query.params
            found = self._client.queues_by_tag(
                params["query_tags"], query.interval, params["match_mode"], self.world_id, self._domain
            )
            with self._lock:
                if query.node_id in self._matches:
                    continue
                self._matches[query.node_id] = tuple(
                    QueueRef(queue=item.topic, node_id=item.node_id, name=item.name) for item in found
                )

    def handle(self, event: CloudEvent) -> None:
        """Apply an event of the topic `queues`."""
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
                    self._matches[query.node_id] = upsert.queues

    def queues_of(self, query: Node) -> int:
        """Return how many queues the query reads."""
        return len(self._engine.upstreams(query))

    def poll(self) -> Iterator[tuple[int, dict[str, dict[str, Row]]]]:
        """Yield what `due` yields, at most every `READ_INTERVAL_S`; resolve the queries first."""
        if not self.queries or time.monotonic() < self._next_read:
            return
        self._next_read = time.monotonic() + READ_INTERVAL_S
        if not self._resolved:
            self.resolve()
            self._resolved = True
        yield from self.due()

    def due(self) -> Iterator[tuple[int, dict[str, dict[str, Row]]]]:
        """Yield the new rows of each query's queues, by close (ns).

        A bar waits `GRACE_S` for queues that lack it.
        """
        for query in self.queries:
            self._refresh(query)
            waiting = self._waiting[query.node_id]
            for (query_id, node_id), (topic, position) in list(self._positions.items()):
                if query_id != query.node_id:
                    continue
                read = self._client.queue_read(topic, position, session=self._session())
                self._positions[(query_id, node_id)] = (topic, read.position)
                for message in read.messages:
                    waiting.setdefault(message.ts + query.interval * NS, (time.monotonic(), {}))[1][
                        node_id
                    ] = _row(message)
            upstreams = set(self._engine.upstreams(query))
            for close in sorted(waiting):
                since, rows = waiting[close]
                if set(rows) < upstreams and time.monotonic() - since < GRACE_S:
                    break
                del waiting[close]
                yield (
                    close,
                    {query.node_id: {node_id: row for node_id, row in rows.items() if node_id in upstreams}},
                )

    def _refresh(self, query: Node) -> None:
        """Add the queues that the query now matches to the engine, and remove the others."""
        with self._lock:
            matches = {
                item.node_id: item
                for item in self._matches.get(query.node_id, ())
                if item.node_id not in self._own
            }
        current = set(self._engine.upstreams(query))
        for node_id in current - set(matches):
            self._engine.remove_upstream(query, node_id)
            self._positions.pop((query.node_id, node_id), None)
        for node_id in sorted(set(matches) - current):
            item = matches[node_id]
            read = self._client.queue_read(
                item.queue, 0, limit=query.period, last=True, session=self._session()
            )
            rows = {message.ts: _row(message) for message in read.messages}
            self._engine.add_upstream(
                query, node_id, item.name or item.queue, [rows[ts] for ts in sorted(rows)]
            )
            self._positions[(query.node_id, node_id)] = (item.queue, read.position)


def _row(message: QueueMessage) -> Row:
    return message.ts, {
        name: float("nan") if value is None else value for name, value in message.values.items()
    }
