"""Renewal, by a Temporal Schedule: which worlds trade on a decision that will soon be stale → have each judged again.

A judgment that only renews counts nobody in or out; one whose data is no longer current, or whose gates no longer hold, switches off what it must.
"""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.messages.evaluation import EvaluationRequest, RenewalDone, RenewalInput, RequestEvaluation
    from activities.messages.stubs import DecisionActivityStubs, EvaluationActivityStubs
    from workflows.shared import SLOW, STORE


@workflow.defn
class RenewalWorkflow:
    @workflow.run
    async def run(self, renewal: RenewalInput) -> RenewalDone:
        due = await workflow.execute_local_activity_method(
            DecisionActivityStubs.worlds_to_renew,
            renewal,
            summary="which decisions will soon be stale",
            **STORE,
        )
        for world_id in due.worlds:
            request = EvaluationRequest(
                request_id=f"renew:{world_id}:{workflow.info().run_id}",
                reason="its decision would become stale",
                renewal=True,
            )
            command = RequestEvaluation(store_id=renewal.store_id, world_id=world_id, request=request)
            await workflow.execute_activity_method(
                EvaluationActivityStubs.request_evaluation,
                command,
                summary=f"judge world {world_id} again"[:200],
                **SLOW,
            )
        workflow.set_current_details(
            f"**renewed** {', '.join(due.worlds) or 'nothing: no decision that something trades on is about to become stale'}"
        )
        return due
