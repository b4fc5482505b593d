"""Start the workflow of a submission and have it admitted, in one request to Temporal."""

import asyncio
from contextlib import suppress

from temporalio.client import Client, WithStartWorkflowOperation, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError

from activities.messages.submission import Admit, Conclusion, SubmissionInput
from activities.submissions.context import asks_for_shadow
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck
from temporal.client import retriable_update_error
from workflows.ids import update_id
from workflows.options import submission_options
from workflows.submission import SubmissionWorkflow


async def admit(
    client: Client, store_id: str, heartbeat_timeout_s: float, submit: StrategySubmit, actor: str
) -> SubmissionAck:
    """Start a submission's workflow, or attach to the one that runs, and wait until it is admitted.

    Idempotent. Raises RPCError and WorkflowUpdateFailedError.
    """
    start = _start_operation(store_id, heartbeat_timeout_s, submit)
    ask = Admit.of(submit, actor)
    try:
        return await client.execute_update_with_start_workflow(
            SubmissionWorkflow.admit, ask, start_workflow_operation=start, id=update_id(ask)
        )
    except (WorkflowUpdateRPCTimeoutOrCancelledError, RPCError) as error:
        with suppress(asyncio.CancelledError, RPCError):
            await start.workflow_handle()  # asyncio complains of an error that nobody takes from it
        if isinstance(error, RPCError):
            raise retriable_update_error(error) from error
        raise


def _start_operation(
    store_id: str, heartbeat_timeout_s: float, submit: StrategySubmit
) -> WithStartWorkflowOperation[SubmissionWorkflow, Conclusion]:
    submission = SubmissionInput(
        store_id=store_id,
        log_key=submit.idempotency_key,
        world_id=submit.world_id,
        strategy_id=submit.dag.strategy_id,
        name=submit.meta.name,
        nodes=len(submit.dag.nodes),
        heartbeat_timeout_s=heartbeat_timeout_s,
    )
    options = submission_options(
        submit.world_id, submission.strategy_id, submission.label, asks_for_shadow(submit)
    )
    return WithStartWorkflowOperation(SubmissionWorkflow.run, submission, **options)
