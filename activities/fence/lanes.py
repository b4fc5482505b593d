"""Lanes: requests of worlds whose fence is held wait for it apart, so that other worlds do not.

A freeze, a judgment or another Gateway may hold a world's fence on PostgreSQL. Each such world gets a lane. A
lane waits for its lock a moment at a time, so that a few threads serve any number of lanes. Once it got the
lock and has answered, it ends: requests that came meanwhile go back to the one queue, whose transactions wait
for callers to gather. A lane that went on would answer busy callers one by one, and never run empty.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from activities.fence.requests import OrdersRequest, next_batch
from activities.fence.rows import FenceHeldError
from qmtl_sdk.contracts.errors import QmtlError

# Lanes that wait for their lock at the same time.
_THREADS = 8

# Seconds after which a request of a world that is still held fails; its caller may send it again.
_LIMIT_S = 10.0


class Lanes:
    """Requests by held world. `answer` answers requests in one transaction, waiting for their fences.

    Each request of a world that has a lane goes there, behind the earlier ones. `give_back` gets those that
    are left when the lane ends.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[OrdersRequest]], None],
        give_back: Callable[[Sequence[OrdersRequest]], None],
    ) -> None:
        self._answer = answer
        self._give_back = give_back
        self._waiting: dict[str, deque[OrdersRequest]] = {}
        self._mutex = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, "fence-lane")

    def take(self, request: OrdersRequest) -> bool:
        """Queue a request if one of its worlds has a lane; return whether it was queued."""
        if not self._waiting:  # nearly always
            return False
        with self._mutex:
            lane = next((self._waiting[world] for world in request.worlds if world in self._waiting), None)
            if lane is None:
                return False
            lane.append(request)
            return True

    def add(self, requests: Sequence[OrdersRequest], held: frozenset[str]) -> None:
        """Queue requests of held worlds, each in the lane of one of its worlds."""
        with self._mutex:
            for request in requests:
                world = min(request.worlds & held)
                lane = self._waiting.get(world)
                if lane is None:
                    lane = self._waiting[world] = deque()
                    self._threads.submit(self._serve, world)
                lane.append(request)

    def _serve(self, world: str) -> None:
        """Answer the requests of a lane and end it; where its fence is still held, let another lane try."""
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
        self._give_back(left)

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
