"""Orders that a running strategy held back, until the fence has recorded them.

They wait while no Gateway answers. Above a limit the oldest are dropped and counted, so that a long outage
costs no memory.
"""

import threading
from collections import deque

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import MAX_REASON, Order, WithheldOrder
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.runtime.batches import BatchSize
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.running import SessionKey

WITHHELD_LIMIT = 10_000
"""Withheld orders that wait for a Gateway before the oldest are dropped."""

BATCH_SIZE = 200
"""Withheld orders per request."""

RETRIED = ("E_UNAVAILABLE", "E_RATE")
"""Errors after which a request is sent again. Any other answer would be the same the next time."""


class WithheldOrders:
    """Queues withheld orders and reports them. `dropped` counts those that were never recorded."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self._waiting: deque[tuple[SessionKey, WithheldOrder]] = deque()
        self._mutex = threading.Lock()
        self._batch_size = BatchSize(BATCH_SIZE)
        self.recorded = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, order: Order, session: SessionKey, reason: str) -> None:
        """Queue the report of an order that is not sent."""
        withheld = WithheldOrder(order=order, reason=printable(reason, MAX_REASON))
        with self._mutex:
            self._waiting.append((session, withheld))
            self._keep_to_the_limit()

    def send(self) -> None:
        """Report the oldest orders of one session. A report without an answer is sent again later.

        Raises QmtlError where no Gateway answers.
        """
        with self._mutex:
            batch = list[tuple[SessionKey, WithheldOrder]]()
            while (
                self._waiting
                and len(batch) < self._batch_size.items
                and (not batch or batch[0][0] == self._waiting[0][0])
            ):
                batch.append(self._waiting.popleft())
        if not batch:
            return
        try:
            self._client.report_withheld([withheld for _, withheld in batch], batch[0][0])
            self.recorded += len(batch)
            self._batch_size.succeeded()
        except QmtlError as error:
            if error.code not in RETRIED:
                self.dropped += len(batch)
                return
            with self._mutex:
                self._waiting.extendleft(reversed(batch))
                self._keep_to_the_limit()
            self._batch_size.failed(error, len(batch))
            raise

    def _keep_to_the_limit(self) -> None:
        while len(self._waiting) > WITHHELD_LIMIT:
            self._waiting.popleft()
            self.dropped += 1
