"""Requests to EvaluationWorkflow: the activity that signals it, and the update that a person waits for."""

from temporalio import activity
from temporalio.client import Client, WithStartWorkflowOperation, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.messages.evaluation import EvaluationInput, RequestEvaluation
from activities.messages.stubs import EvaluationActivityStubs
from temporal.client import retriable_update_error
from workflows.evaluation import CONTINUES_AS_NEW, EvaluationWorkflow
from workflows.ids import update_id
from workflows.options import evaluation_options


class EvaluationActivities(EvaluationActivityStubs):
    """Requests evaluations on behalf of other workflows."""

    @activity.defn
    async def request_evaluation(self, command: RequestEvaluation) -> None:
        """Signal a world's EvaluationWorkflow, starting it if it does not run."""
        await activity.client().start_workflow(
            EvaluationWorkflow.run,
            EvaluationInput(store_id=command.store_id, world_id=command.world_id),
            start_signal="request",
            start_signal_args=[command.request],
            **evaluation_options(command.world_id),
        )


async def evaluate(client: Client, command: RequestEvaluation) -> None:
    """Have a world judged, and wait for it. Raises RPCError, which is retried where the next run takes it."""
    world = EvaluationInput(store_id=command.store_id, world_id=command.world_id)
    start = WithStartWorkflowOperation(EvaluationWorkflow.run, world, **evaluation_options(command.world_id))
    try:
        await client.execute_update_with_start_workflow(
            EvaluationWorkflow.evaluate,
            command.request,
            start_workflow_operation=start,
            id=update_id(command.request),
        )
    except WorkflowUpdateFailedError as error:
        if not isinstance(error.cause, ApplicationError) or error.cause.type != CONTINUES_AS_NEW:
            raise
        # The next run takes it.
        raise RPCError(error.cause.message, RPCStatusCode.UNAVAILABLE, b"") from error
    except RPCError as error:
        raise retriable_update_error(error) from error
