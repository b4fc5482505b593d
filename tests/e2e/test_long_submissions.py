"""A submission that loses runner after runner continues as new, and is the same run to everyone."""

import asyncio
from pathlib import Path

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import SubmissionAck
from tests.support import ROOT
from tests.support.author import Author
from tests.support.served import Served, until
from tests.support.submission_checker import submission_violations
from tests.support.workers import LIMIT_S, workers

# Events after which the server suggests to continue as new: some two leases.
HISTORY_LIMIT = 15


async def executions(stage: Served, workflow_id: str) -> list[str]:
    """The executions of a workflow, as each of them ended."""
    found = stage.client.list_workflows(f"WorkflowId = '{workflow_id}'")
    return [item.status.name if item.status else "" async for item in found]


def test_submissions_that_lose_runner_after_runner_are_decided_as_one_run_each(tmp_path: Path) -> None:
    """Three at once, and their worker dies meanwhile."""

    async def run() -> None:
        async with workers(tmp_path, HISTORY_LIMIT) as (stage, started):
            worker = await started.start(str(ROOT))
            author = Author(stage, heartbeat_s=0.5)

            async def leased(number: int, turn: int) -> SubmissionAck:
                """Submit until the lease is this runner's: the one before loses it after 0.5 s."""
                runner = f"runner-{number}-{turn}"

                async def granted() -> SubmissionAck | None:
                    ack = await author.submits(number, runner)
                    return ack if ack.lease is not None else None

                return await until(granted, "lease", LIMIT_S)

            async def crosses(number: int) -> SubmissionAck:
                acks = [await leased(number, 0)]
                while (await executions(stage, acks[0].workflow_id)).count("CONTINUED_AS_NEW") < 2:
                    acks.append(await leased(number, len(acks)))
                assert len({ack.run_id for ack in acks}) == 1
                assert len({ack.lease.lease_id for ack in acks if ack.lease}) == len(acks)
                return acks[0]

            async def dies() -> None:
                started.kill(worker)
                await started.start(str(ROOT))

            *firsts, _ = await asyncio.gather(*(crosses(number) for number in range(3)), dies())
            for number, first in enumerate(firsts):

                async def decided(number: int = number) -> bool:
                    try:
                        outcome = await author.completes(await leased(number, 1000))
                    except QmtlError as error:
                        if error.code != "E_LEASE_LOST":  # it timed out before it was completed
                            raise
                        return False
                    return outcome.status == "decided"

                await until(decided, "decision", LIMIT_S)
                await stage.client.get_workflow_handle(first.workflow_id).result()
                ended = await executions(stage, first.workflow_id)
                assert set(ended) <= {"CONTINUED_AS_NEW", "COMPLETED"}
                assert (await author.outcome(first)).run_id == first.run_id
            mine = {first.run_id for first in firsts}  # the desk's world has runs that only hold evidence
            found = submission_violations(stage.stores.database)
            assert [line for line in found if line.split()[1] in mine or line.split()[0] != "run"] == []

    asyncio.run(run())
