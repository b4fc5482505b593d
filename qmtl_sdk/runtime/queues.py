"""Send a running strategy's rows to its nodes' queues, under keys that make a repeated row idempotent."""

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.compute.series import Row
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import QueueMessage, message_key
from qmtl_sdk.contracts.submission import QueueTarget
from qmtl_sdk.data.bars import NS
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.runtime.batches import BatchSize
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.running import SessionKey

HISTORY_ROWS = 500
"""Rows of history that a tagged node's queue gets when the strategy starts."""

BATCH_SIZE = 500
"""Rows per round of requests."""

UNSENT_LIMIT = 50_000
"""Rows that wait for the Gateway before the oldest are dropped."""


class QueueWriter:
    """Collects rows and sends them in order. All methods run on the strategy's thread."""

    def __init__(
        self, client: GatewayClient, session: Callable[[], SessionKey], stop: threading.Event
    ) -> None:
        self._client = client
        self._session = session
        self._stop = stop
        self._unsent: deque[tuple[str, QueueMessage]] = deque()
        self._batch_size = BatchSize(BATCH_SIZE)
        self.dropped = 0

    def add(self, node: Node, target: QueueTarget, row: Row, window: str) -> None:
        """Add a node's row. `window` is the hash of the inputs that it was computed from."""
        ts, values = row
        key = message_key(node.node_id, node.interval, ts // NS, target.compute_key, window)
        self._unsent.append((target.topic, QueueMessage(key=key, ts=ts, values=_json_values(values))))
        if len(self._unsent) > UNSENT_LIMIT:
            self._unsent.popleft()
            self.dropped += 1

    def add_history(
        self, nodes: Sequence[Node], outputs: Mapping[str, NodeOutput], targets: Mapping[str, QueueTarget]
    ) -> None:
        """Add the newest rows of tagged nodes, so that a new tag query has a full window at once."""
        for node in nodes:
            output = outputs.get(node.node_id)
            if not node.tags or output is None or isinstance(node, StreamInput):
                continue
            for row in range(max(output.first, len(output.bars) - HISTORY_ROWS), len(output.bars)):
                values = {name: float(column[row]) for name, column in output.bars.columns.items()}
                window = hash_of(_json_values(values))
                self.add(node, targets[node.node_id], (int(output.bars.ts[row]), values), window)

    def clear(self) -> None:
        """Drop the rows that are not sent yet."""
        self._unsent.clear()

    def send(self) -> None:
        """Send the rows, oldest first. Rows of a failed request are sent again under the same keys.

        Raises QmtlError where no Gateway takes them.
        """
        while self._unsent and not self._stop.is_set():
            batch: dict[str, list[QueueMessage]] = {}
            count = min(len(self._unsent), self._batch_size.items)
            for i in range(count):
                topic, message = self._unsent[i]
                batch.setdefault(topic, []).append(message)
            try:
                for topic, messages in batch.items():
                    self._client.queue_append(topic, messages, self._session())
            except QmtlError as error:
                self._batch_size.failed(error, count)
                raise
            self._batch_size.succeeded()
            for _ in range(count):
                self._unsent.popleft()


def _json_values(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN by None, because JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}
