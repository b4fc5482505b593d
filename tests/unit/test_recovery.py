"""Requests that are tried again: one that hangs or fails ends at its limit, and is tried again later."""

import asyncio
from functools import partial

import pytest

from temporal import recovery
from temporal.recovery import Recovery


def test_attempts_that_hang_end_at_their_limit_and_the_others_are_carried_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recovery, "_LIMIT_S", 0.05)
    monkeypatch.setattr(recovery, "_RETRY_S", 0.0)
    tried: list[str] = []
    hang = True

    async def attempt(key: str) -> None:
        tried.append(key)
        if hang and key.startswith("hanging"):
            await asyncio.Event().wait()

    # More that hang than are tried at a time, and older than the others.
    keys = [*(f"hanging {number}" for number in range(15)), *(f"good {number}" for number in range(15))]
    attempts = {key: partial(attempt, key) for key in keys}

    async def run() -> None:
        nonlocal hang
        service = Recovery("a request")
        async with asyncio.timeout(20):
            assert await service.run(attempts) == 15
            tried.clear()
            hang = False
            assert await service.run(attempts) == 30
        assert all(key.startswith("good") for key in tried[:15]), "those that failed are tried last"

    asyncio.run(run())


def test_a_request_that_failed_is_left_alone_until_it_is_due() -> None:
    tried: list[str] = []

    async def attempt() -> None:
        tried.append("x")
        raise ValueError("a row that can't be read")

    async def run() -> None:
        service = Recovery("a request")
        assert await service.run({"x": attempt}) == 0
        assert await service.run({"x": attempt}) == 0
        assert await service.run({}) == 0
        assert await service.run({"x": attempt}) == 0, "one that is stored anew is new"
        assert tried == ["x", "x"]

    asyncio.run(run())
