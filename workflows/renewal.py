"""Renewal, on a Temporal Schedule: list the decisions that will soon be stale → request new judgments.

A renewal is a judgment like any other: it counts no evidence twice, and puts out what has gone stale.
"""

from temporalio import workflow
from temporalio.common import VersioningBehavior

with workflow.unsafe.imports_passed_through():
    from activities.messages.evaluation import EvaluationRequest, RenewalDone, RenewalInput, RequestEvaluation
    from activities.messages.stubs import DecisionActivityStubs, EvaluationActivityStubs
    from workflows.ids import renewal_request_id
    from workflows.markdown import one_line
    from workflows.options import SLOW, STORE


@workflow.defn(versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class RenewalWorkflow:
    """Renews the decisions of a store's worlds before they are stale."""

    @workflow.run
    async def run(self, renewal: RenewalInput) -> RenewalDone:
        """Request a judgment of every world whose decision will soon be stale. Returns these worlds."""
        due = await workflow.execute_local_activity_method(
            DecisionActivityStubs.worlds_to_renew,
            renewal,
            summary="list the decisions that will soon be stale",
            **STORE,
        )
        for world_id in due.worlds:
            request = EvaluationRequest(
                request_id=renewal_request_id(world_id, workflow.info().run_id),
                reason="its decision would become stale",
            )
            command = RequestEvaluation(store_id=renewal.store_id, world_id=world_id, request=request)
            await workflow.execute_activity_method(
                EvaluationActivityStubs.request_evaluation,
                command,
                summary=one_line(f"request a judgment of world {world_id}"),
                **SLOW,
            )
        worlds = ", ".join(due.worlds)
        workflow.set_current_details(
            f"**renewed {worlds}**" if worlds else "**no decision is due for renewal**"
        )
        return due
