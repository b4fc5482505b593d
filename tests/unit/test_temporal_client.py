"""Calls to Temporal that are retried."""

import asyncio

import pytest
from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError

from temporal.client import retry_while_unavailable


def test_a_cancelled_call_is_not_tried_again() -> None:
    """The client's error for a cancelled update looks like an unavailable server: a Gateway did not stop."""
    calls = 0

    async def update() -> None:
        nonlocal calls
        calls += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            raise WorkflowUpdateRPCTimeoutOrCancelledError() from error

    async def run() -> None:
        task = asyncio.create_task(retry_while_unavailable(update))
        while not calls:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        assert calls == 1

    asyncio.run(run())
