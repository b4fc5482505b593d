"""Two stacks on one Temporal refuse each other's work."""

import asyncio
from pathlib import Path

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.commands import RunCommand
from activities.storage.database import open_database
from temporal.plugin import ActivityRules


class Doing(ActivityInboundInterceptor):
    """The activity itself, at the end of the chain."""

    def __init__(self) -> None:
        self.done = False

    async def execute_activity(self, input: ExecuteActivityInput) -> str:
        self.done = True
        return "done"


@activity.defn
async def work(command: RunCommand) -> str:
    return ""


def test_a_worker_of_another_store_refuses_and_does_nothing(tmp_path: Path) -> None:
    """Trap 18: a worker left behind did the next run's work in the wrong store, and everything looked done."""
    mine, other = open_database(f"sqlite:///{tmp_path / 'a.db'}"), open_database(f"sqlite:///{tmp_path / 'b.db'}")
    assert mine.store_id != other.store_id
    doing = Doing()
    chain = ActivityRules(mine.store_id).intercept_activity(doing)

    def run(store: str) -> str:
        command = RunCommand(store_id=store, run_id="r", log_key="k", world_id="w")
        given = ExecuteActivityInput(fn=work, args=[command], executor=None, headers={})
        environment = ActivityEnvironment()
        answer: str = environment.run(lambda: asyncio.run(chain.execute_activity(given)))
        return answer

    with pytest.raises(ApplicationError) as caught:
        run(other.store_id)
    assert caught.value.type == "E_FOREIGN_STORE"
    assert not caught.value.non_retryable
    assert not doing.done
    assert run(mine.store_id) == "done"
    mine.close()
    other.close()
