"""Loops of a Gateway: whatever a turn raises, however often, the loop goes on, and health shows its fault."""

import asyncio
from collections.abc import Callable

import pytest

from api import loops as module
from api.loops import BackgroundLoops

LIMIT_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.001)
    monkeypatch.setattr(module, "_RETRY_LIMIT_S", 0.005)


@pytest.mark.parametrize("error", [ValueError("a row\nthat can't be read"), asyncio.CancelledError()])
@pytest.mark.parametrize("times", [1, 50])
def test_a_loop_outlives_errors_and_shows_them_until_a_turn_succeeds(
    error: BaseException, times: int
) -> None:
    calls: list[int] = []
    goes_on = asyncio.Event()

    async def turn() -> float:
        calls.append(1)
        if len(calls) <= times:
            raise error
        await goes_on.wait()
        return 0.0

    async def run() -> None:
        supervisor = BackgroundLoops()
        supervisor.start("sessions", turn)
        await until(lambda: len(calls) > times)
        assert list(supervisor.faults()) == ["sessions"]
        assert f"failed {times} times in a row: {type(error).__name__}" in supervisor.faults()["sessions"]
        goes_on.set()
        await until(lambda: supervisor.faults() == {})
        await supervisor.stop()

    asyncio.run(run())


def test_a_loop_that_fails_delays_no_other() -> None:
    async def failing() -> float:
        raise ZeroDivisionError

    turns: list[int] = []

    async def working() -> float:
        turns.append(1)
        return 0.0

    async def run() -> None:
        supervisor = BackgroundLoops()
        supervisor.start("failing", failing)
        supervisor.start("working", working)
        await until(lambda: len(turns) > 20)
        assert list(supervisor.faults()) == ["failing"]
        await supervisor.stop()

    asyncio.run(run())


def test_a_turn_that_does_not_end_is_a_fault_where_it_may_not_wait() -> None:
    goes_on = asyncio.Event()

    async def turn() -> float:
        await goes_on.wait()
        return 60.0

    async def run() -> None:
        supervisor = BackgroundLoops()
        supervisor.start("sessions", turn, limit_s=0.01)
        supervisor.start("stream", turn)
        await until(lambda: list(supervisor.faults()) == ["sessions"])
        assert "hangs" in supervisor.faults()["sessions"]
        goes_on.set()
        await until(lambda: supervisor.faults() == {})
        await supervisor.stop()

    asyncio.run(run())


def test_stopping_ends_every_loop() -> None:
    async def turn() -> float:
        await asyncio.sleep(60)
        return 0.0

    async def run() -> None:
        supervisor = BackgroundLoops()
        supervisor.start("sessions", turn)
        await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT_S):
            await supervisor.stop()

    asyncio.run(run())
