"""Calls to Temporal that are retried."""

import asyncio

import pytest
from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError, RPCStatusCode

from qmtl_sdk.contracts.errors import QmtlError
from temporal.client import retriable_update_error, retry_while_unavailable


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


@pytest.mark.parametrize("status", [RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION])
def test_an_update_that_its_run_cannot_take_now_is_sent_again(status: RPCStatusCode) -> None:
    """The run has ended, or its tasks fail: an overloaded worker made clients fail with E_INTERNAL."""
    calls = 0

    async def update() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise retriable_update_error(RPCError("not now", status, b""))
        return "done"

    assert asyncio.run(retry_while_unavailable(update)) == "done"


def test_a_run_whose_tasks_fail_is_looked_at_again_until_the_limit() -> None:
    """Every query, update and completed activity may meet it: none may end in E_INTERNAL."""
    calls = 0

    async def query() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RPCError("its tasks fail", RPCStatusCode.FAILED_PRECONDITION, b"")
        return "done"

    async def never() -> None:
        raise RPCError("its tasks fail", RPCStatusCode.FAILED_PRECONDITION, b"")

    assert asyncio.run(retry_while_unavailable(query)) == "done"
    with pytest.raises(QmtlError, match="its tasks fail") as error:
        asyncio.run(retry_while_unavailable(never, limit_s=0.1))
    assert error.value.code == "E_UNAVAILABLE"
