"""Answers of the fence on their way to the event loop: one wake-up a transaction, and none is lost."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from activities.fence.callers import OrderCaller
from api.acceptance import AsyncAcceptance, Verdicts
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderVerdict


def verdicts(number: int) -> Verdicts:
    return [OrderVerdict(order_id=f"order:{number:04}", accepted=True, epoch=number)]


ANA = OrderCaller("ana")


class Counting(asyncio.SelectorEventLoop):
    """An event loop that counts how often another thread wakes it."""

    def __init__(self) -> None:
        super().__init__()
        self.wakes = 0

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, **options: Any) -> Any:
        self.wakes += 1
        return super().call_soon_threadsafe(callback, *args, **options)


class HeldFence:
    """What the fence answers, when the test says so, in a thread of its own."""

    def __init__(self) -> None:
        self.given: list[Future[Verdicts]] = []

    def submit(self, orders: Sequence[Order], caller: OrderCaller) -> "Future[Verdicts]":
        self.given.append(Future())
        return self.given[-1]

    def answer(self, act: Callable[[], object]) -> None:
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()

    def answer_all(self) -> None:
        for number, given in enumerate(self.given):
            if given.set_running_or_notify_cancel():
                given.set_result(verdicts(number))


def test_answers_of_one_transaction_wake_the_loop_once() -> None:
    async def run() -> int:
        fence = HeldFence()
        acceptance = AsyncAcceptance(fence.submit)
        waiting = [asyncio.create_task(acceptance.publish([], ANA)) for _ in range(8)]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        before = loop.wakes
        fence.answer(fence.answer_all)
        assert await asyncio.gather(*waiting) == [verdicts(number) for number in range(8)]
        return loop.wakes - before

    with asyncio.Runner(loop_factory=Counting) as runner:
        assert runner.run(run()) == 1


def test_every_answer_arrives_while_the_loop_takes_others() -> None:
    """Answers that come while the loop hands over earlier ones wake it again."""

    async def run() -> None:
        fence, rounds = HeldFence(), 300
        acceptance = AsyncAcceptance(fence.submit)

        def serve() -> None:
            served = 0
            while served < 8 * rounds:
                if served < len(fence.given):
                    fence.given[served].set_result(verdicts(served))
                    served += 1

        thread = threading.Thread(target=serve)
        thread.start()

        async def publisher() -> None:
            for _ in range(rounds):
                assert (await acceptance.publish([], ANA))[0].accepted

        await asyncio.wait_for(asyncio.gather(*(publisher() for _ in range(8))), 60)
        thread.join()

    asyncio.run(run())


def test_an_error_reaches_its_own_request_alone() -> None:
    async def run() -> None:
        fence = HeldFence()
        acceptance = AsyncAcceptance(fence.submit)
        bad, good = (asyncio.create_task(acceptance.publish([], ANA)) for _ in range(2))
        await asyncio.sleep(0)

        def act() -> None:
            fence.given[0].set_exception(QmtlError("E_WORLD_UNKNOWN", "there is no world 'x'", ""))
            fence.given[1].set_result(verdicts(1))

        fence.answer(act)
        with pytest.raises(QmtlError, match="no world"):
            await bad
        assert await good == verdicts(1)

    asyncio.run(run())


def test_a_cancelled_request_withdraws_its_orders_and_leaves_the_others_alone() -> None:
    async def run() -> None:
        fence = HeldFence()
        acceptance = AsyncAcceptance(fence.submit)
        gone, late, stays = (asyncio.create_task(acceptance.publish([], ANA)) for _ in range(3))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert fence.given[0].cancelled(), "the fence must not decide for a caller that has gone"
        assert fence.given[1].set_running_or_notify_cancel()  # the transaction has begun
        late.cancel()
        fence.answer(lambda: fence.given[1].set_result(verdicts(1)))
        fence.answer(lambda: fence.given[2].set_result(verdicts(2)))
        assert await stays == verdicts(2)
        assert (await asyncio.gather(late, return_exceptions=True))[0].__class__ is asyncio.CancelledError

    asyncio.run(run())


def test_an_answer_after_the_loop_has_ended_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    fence = HeldFence()

    async def run() -> None:
        waiting = asyncio.create_task(AsyncAcceptance(fence.submit).publish([], ANA))
        await asyncio.sleep(0)
        assert fence.given[0].set_running_or_notify_cancel()
        waiting.cancel()

    asyncio.run(run())
    fence.answer(lambda: fence.given[0].set_result(verdicts(0)))
    assert not caplog.records, "the fence's thread logs no failed callback"
