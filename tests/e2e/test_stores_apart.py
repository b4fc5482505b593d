"""What belongs to others: another store's work, and an asker that has gone."""

import asyncio
from pathlib import Path

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.messages.evaluation import EvaluationInput, EvaluationRequest
from activities.messages.submission import RunCommand
from activities.storage.opening import open_database
from temporal.client import connect
from temporal.plugin import ActivityRules
from tests.support.machine import Machine
from tests.support.worlds import POLICY, world
from workflows.ids import submission_id
from workflows.options import evaluation_options


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
    """Trap 18.

    A worker left behind did the next run's work in the wrong store, and everything looked done.
    """
    mine, other = (
        open_database(f"sqlite:///{tmp_path / 'a.db'}"),
        open_database(f"sqlite:///{tmp_path / 'b.db'}"),
    )
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


def test_a_judgment_whose_asker_has_gone_is_made_all_the_same(machine: Machine) -> None:
    async def ask() -> object:
        client = await connect(machine.config.temporal)
        database = machine.database()
        request = EvaluationRequest(
            request_id="asker-gone",
            reply_to=submission_id("gone", "nobody"),
            reply_run="01a1fd00-0000-7000-8000-000000000000",
        )
        about = EvaluationInput(store_id=database.store_id, world_id="gone")
        database.close()
        handle = await client.start_workflow(
            "EvaluationWorkflow",
            about,
            start_signal="request",
            start_signal_args=[request],
            **evaluation_options("gone"),
        )
        return await asyncio.wait_for(handle.result(), 60)

    with machine.client() as client:
        client.create_world(world("gone"), POLICY)
    assert asyncio.run(ask()) is not None
    with machine.client() as client:
        assert len(client.decisions("gone", 10)) == 1
