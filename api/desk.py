"""Orders of many requests, answered together: one transaction of the fence serves all that came in meanwhile."""

import asyncio
from collections import deque
from collections.abc import Sequence

from activities.orders.sql import SqlOrderStore
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderVerdict


class Desk:
    """The store groups what several threads bring; this does the same for requests, without a thread for each."""

    def __init__(self, orders: SqlOrderStore) -> None:
        self._orders, self._waiting = orders, deque[tuple[Sequence[Order], asyncio.Future[list[OrderVerdict]]]]()
        self._serving: asyncio.Task[None] | None = None

    async def publish(self, orders: Sequence[Order]) -> list[OrderVerdict]:
        """A verdict for each order. Raises QmtlError, as the store."""
        answer: asyncio.Future[list[OrderVerdict]] = asyncio.get_running_loop().create_future()
        self._waiting.append((orders, answer))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            answers = await asyncio.to_thread(self._orders.publish_all, [orders for orders, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.cancelled():
                    continue  # the caller has gone; its orders are answered when it asks again
                if isinstance(answer, QmtlError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
