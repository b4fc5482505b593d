"""Hand the fence's answers from its thread to the event loop, a whole transaction's answers at once."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from activities.fence.callers import OrderCaller
from qmtl_sdk.contracts.orders import OrderRequest, OrderVerdict

Verdicts = list[OrderVerdict]


class AsyncAcceptance:
    """Sends orders to the fence for requests of one event loop.

    The fence answers all requests of a transaction one after another. The first answer wakes the loop, the
    others join it. Waking the loop for each of them took as long as deciding its order.
    """

    def __init__(self, submit: Callable[[Sequence[OrderRequest], OrderCaller], "Future[Verdicts]"]) -> None:
        """Take the fence's `submit`. The event loop is the running one."""
        self._submit = submit
        self._loop = asyncio.get_running_loop()
        self._given = deque[tuple[asyncio.Future[Verdicts], Future[Verdicts]]]()
        self._woken = False

    async def publish(self, orders: Sequence[OrderRequest], caller: OrderCaller) -> Verdicts:
        """Return a verdict for each order. Raises what the fence raises.

        Cancelling it withdraws the orders, unless a transaction has begun to answer them.
        """
        waiting: asyncio.Future[Verdicts] = self._loop.create_future()
        given = self._submit(orders, caller)
        given.add_done_callback(partial(self._take, waiting))
        try:
            return await waiting
        finally:
            given.cancel()  # nothing happens where it is done

    def _take(self, waiting: "asyncio.Future[Verdicts]", given: "Future[Verdicts]") -> None:
        """Remember an answer, in the fence's thread, and wake the loop unless it was woken already."""
        self._given.append((waiting, given))
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._hand_over)
            except RuntimeError:  # the loop has ended, and with it every request that waits
                self._given.clear()

    def _hand_over(self) -> None:
        """Give each remembered answer to its request, in the loop's thread."""
        self._woken = False  # first: an answer that is added from now on wakes the loop again
        while self._given:
            waiting, given = self._given.popleft()
            if waiting.done():  # its request was cancelled
                continue
            error = given.exception()
            if error is None:
                waiting.set_result(given.result())
            else:
                waiting.set_exception(error)
