"""Steps and waits that a cancellation of the workflow does not end."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow

T = TypeVar("T")


async def wait_until(
    condition: Callable[[], bool], limit: timedelta | None = None, summary: str = ""
) -> None:
    """Wait for a condition. Raises TimeoutError after the limit.

    The SDK ends every wait as a cancellation of the workflow arrives, whichever task waits. The `run` of the
    workflow makes the cancellation a request to end, which the condition contains.
    """
    while not condition():
        with suppress(asyncio.CancelledError):
            await workflow.wait_condition(condition, timeout=limit, timeout_summary=summary or None)


async def run_to_the_end(steps: Coroutine[Any, Any, T], on_cancel: Callable[[], None]) -> T:
    """Run the steps of a workflow to their end. A cancellation of the workflow reaches none of them.

    A step that is cancelled may be done all the same, so `on_cancel` requests that they end by themselves.
    (Any: a coroutine's send and yield types, which nobody uses.)
    """
    task = asyncio.create_task(steps)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            on_cancel()
    return task.result()
