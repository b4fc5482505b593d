"""Queues of requests that wait for a lock: those of worlds whose fence is held, so that other worlds go on.

A freeze, a judgment or another Gateway may hold a world's fence on PostgreSQL. Each such world gets a queue.
A queue waits for its lock a moment at a time, so that a few threads serve any number of queues. Once it got
the lock and has answered one batch, it ends: the other requests go back to the shared queue, whose
transactions wait for callers to gather. A queue that went on would answer busy callers one by one, and never
become empty.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from activities.fence.requests import OrdersRequest, next_batch
from activities.fence.snapshot import FenceHeldError
from qmtl_sdk.contracts.errors import QmtlError

# Queues that wait for their lock at the same time.
_THREADS = 8

# Seconds after which a request of a world that is still held fails; its caller may send it again.
_LIMIT_S = 10.0


class LockWaitQueues:
    """Requests by held world. `answer` answers requests in one transaction, waiting for their fences.

    Each request of a world that has a queue goes there, behind the earlier ones. `requeue` gets those that
    are left when the queue ends.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[OrdersRequest]], None],
        requeue: Callable[[Sequence[OrdersRequest]], None],
    ) -> None:
        self._answer = answer
        self._requeue = requeue
        self._waiting: dict[str, deque[OrdersRequest]] = {}
        self._mutex = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, "fence-wait")

    def enqueue_if_held(self, request: OrdersRequest) -> bool:
        """Queue a request if one of its worlds has a queue; return whether it was queued."""
        if not self._waiting:  # nearly always
            return False
        with self._mutex:
            queue = next((self._waiting[world] for world in request.worlds if world in self._waiting), None)
            if queue is None:
                return False
            queue.append(request)
            return True

    def enqueue(self, requests: Sequence[OrdersRequest], held: frozenset[str]) -> None:
        """Queue requests of held worlds, each in the queue of one of its worlds."""
        with self._mutex:
            for request in requests:
                world = min(request.worlds & held)
                queue = self._waiting.get(world)
                if queue is None:
                    queue = self._waiting[world] = deque()
                    self._threads.submit(self._serve, world)
                queue.append(request)

    def _serve(self, world: str) -> None:
        """Answer one batch and end the queue; while the fence is held, free the thread and try later."""
        with self._mutex:
            batch = next_batch(self._waiting[world])
        try:
            if batch:
                self._answer(batch)
        except FenceHeldError:
            with self._mutex:
                self._waiting[world].extendleft(reversed(self._in_time(world, batch)))
            self._threads.submit(self._serve, world)
            return
        with self._mutex:
            left = self._waiting.pop(world)
        self._requeue(left)

    @staticmethod
    def _in_time(world: str, batch: Sequence[OrdersRequest]) -> list[OrdersRequest]:
        """Fail the requests that have waited too long for the fence of a world; return the others."""
        oldest = time.monotonic() - _LIMIT_S
        for request in batch:
            if request.since < oldest:
                request.error = QmtlError(
                    "E_UNAVAILABLE",
                    f"the fence of world {world} was held by another transaction for {_LIMIT_S:g} s",
                    "send the orders again under the same ids",
                )
                request.set_answer()
        return [request for request in batch if request.since >= oldest]
