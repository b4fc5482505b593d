"""One row that cannot be read does not end a loop, and does not hide the others in a list."""

import asyncio
from types import SimpleNamespace
from typing import Any

from sqlalchemy import text
from temporalio.service import RPCError, RPCStatusCode

from activities.storage.database import Database
from qmtl_sdk.contracts.applies import ApprovalBody
from temporal.applies import ApplyService
from temporal.submissions import SubmissionService
from tests.support.desk import Desk


class Temporal:
    """A client of Temporal that notes what is started and signalled."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.signalled: list[str] = []

    async def start_workflow(self, run: Any, arg: Any, **_: Any) -> None:
        self.started.append(arg.world_id)

    def get_workflow_handle_for(self, run: Any, workflow_id: str) -> Any:
        async def signal(method: Any, arg: Any) -> None:
            self.signalled.append(arg.run_id)

        return SimpleNamespace(signal=signal)

    def get_workflow_handle(self, workflow_id: str) -> Any:
        async def describe() -> None:
            raise RPCError("no workflow", RPCStatusCode.NOT_FOUND, b"")

        return SimpleNamespace(describe=describe)


def change(database: Database, statement: str) -> None:
    with database.write("test", bookkeeping=True) as tx:
        tx.session.connection().execute(text(statement))


def recovered(desk: Desk) -> Temporal:
    temporal = Temporal()
    service = ApplyService(temporal, "store", desk.requests, desk.approvals, desk.steps)  # type: ignore[arg-type]
    asyncio.run(service.recover())
    return temporal


def test_an_apply_that_cannot_be_read_does_not_hold_up_the_others(database: Database) -> None:
    for world in ("a", "b"):
        desk = Desk(database, world)
        desk.request("dryrun")
    change(database, "UPDATE apply SET state = 'validate' WHERE world_id = 'a'")
    assert recovered(desk).started == ["b"]


def test_an_approval_that_cannot_be_read_does_not_hold_up_the_others(database: Database) -> None:
    for world in ("a", "b"):
        desk = Desk(database, world)
        run = desk.request("dryrun", f"run-{world}")
        desk.approvals.record(world, run, "ana", "approve", ApprovalBody())
    change(database, "UPDATE approval SET verdict = 'perhaps' WHERE world_id = 'a'")
    assert recovered(desk).signalled == ["run-b"]


def test_lists_leave_out_what_cannot_be_read(database: Database) -> None:
    desk = Desk(database, "w", strategies=2)
    first, second = (desk.session(strategy) for strategy in desk.strategies)
    change(database, f"UPDATE session SET execution_domain = 'paper' WHERE session_id = '{first}'")
    assert [item.session_id for item in desk.sessions.all("w")] == [second]
    done = desk.apply("dryrun")
    desk.request("live", "run-unreadable")
    change(database, "UPDATE apply SET state = 'validate' WHERE run_id = 'run-unreadable'")
    assert [item.run_id for item in desk.requests.newest("w")] == [done]


def test_a_submission_that_cannot_be_read_does_not_hold_up_the_others() -> None:
    admitted: list[str] = []

    def body(key: str) -> Any:
        if key == "a":
            raise ValueError("no such schema")
        return SimpleNamespace(model_copy=lambda update: key)

    async def admit(submit: Any, actor: str, limit_s: float) -> None:
        admitted.append(submit)

    log = SimpleNamespace(waiting=lambda most: ["a", "b"], body=body)
    service = SubmissionService(None, "store", log, None, None, 1.0)  # type: ignore[arg-type]
    service._admit = admit  # type: ignore[method-assign,assignment]
    asyncio.run(service.recover())
    assert admitted == ["b"]


def test_a_recovery_leaves_alone_what_its_own_gateway_is_admitting() -> None:
    """Each submission of a burst was admitted twice once it had waited for 15 s."""
    admitted: list[str] = []

    async def submitted_beside_a_recovery() -> None:
        answered = asyncio.Event()

        async def admit(submit: Any, actor: str, limit_s: float) -> None:
            admitted.append(actor)
            if actor:  # the submission itself
                await answered.wait()

        entry = SimpleNamespace(ack=None, refused=None)
        body = SimpleNamespace(model_copy=lambda update: "a")
        log = SimpleNamespace(
            waiting=lambda most: ["a"], append=lambda submit, actor: entry, body=lambda key: body
        )
        service = SubmissionService(None, "store", log, None, None, 1.0)  # type: ignore[arg-type]
        service._admit = admit  # type: ignore[method-assign,assignment]
        submission: Any = SimpleNamespace(idempotency_key="a")
        submitted = asyncio.create_task(service.submit(submission, "ana"))
        async with asyncio.timeout(30):
            while not admitted:
                await asyncio.sleep(0)
        assert await service.recover() == 0
        answered.set()
        await submitted

    asyncio.run(submitted_beside_a_recovery())
    assert admitted == ["ana"]
