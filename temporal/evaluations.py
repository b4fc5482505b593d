"""The activity that signals EvaluationWorkflow: it needs the Temporal client, so it lives here."""

from temporalio import activity

from activities.messages.evaluation import EvaluationInput, RequestEvaluation
from activities.messages.stubs import EvaluationActivityStubs
from workflows.evaluation import EvaluationWorkflow
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
