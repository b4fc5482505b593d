"""Several processes at the same world at once: one apply at a time, each of its steps once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from activities.applies.requests import SqlApplyRequests
from activities.applies.steps import SqlApplySteps
from activities.storage.database import Database
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.applies import ApplyRequest
from tests.support.desk import Desk
from tests.support.trail import audit_trail

T = TypeVar("T")


def at_once(do: Callable[[int], T], count: int = 6) -> list[T]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(do, range(count)))


def test_of_applies_requested_at_once_one_is_taken(database: Database) -> None:
    desk = Desk(database)

    def ask(number: int) -> str:
        try:
            SqlApplyRequests(database).request(
                desk.world, ApplyRequest(run_id=f"run{number}", to="dryrun"), "olga"
            )
        except QmtlError as error:
            return error.code
        return "taken"

    for _ in range(5):
        assert sorted(at_once(ask)) == ["E_APPLY_RUNNING"] * 5 + ["taken"]
        taken = desk.requests.unfinished()
        assert len(taken) == 1
        desk.steps.conclude(*taken[0], "rolled_back", "only asked for")
        desk = Desk(database, f"{desk.world}x")


def test_a_step_that_several_workers_do_at_once_is_done_once(database: Database) -> None:
    """A worker that was taken for dead, and the one that repeats its step."""
    desk = Desk(database)
    run = desk.request("dryrun")
    desk.approve(run)
    steps: list[Callable[[int], object]] = [
        lambda _: SqlApplySteps(database).freeze(desk.world, run),
        lambda _: SqlApplySteps(database).drain(desk.world, run),
        lambda _: SqlApplySteps(database).switch(desk.world, run),
        lambda _: SqlApplySteps(database).unfreeze(desk.world, run),
        lambda _: SqlApplySteps(database).conclude(desk.world, run, "completed", ""),
    ]
    for step in steps:
        answers = at_once(step)
        assert all(answer == answers[0] for answer in answers)
    assert desk.logged() == ["freeze", "drain", "switch", "unfreeze"]
    audit_trail(database).verify(desk.world)
