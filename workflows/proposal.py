"""A firing of a schedule of rebalancings: propose shares → request a run where they differ by enough.

The run is a rebalancing like any other: it waits for approvals, and its own workflow carries it out. A firing
that fails is recorded as failed, with the reason; the schedule fires again at its next time.
"""

from temporalio import workflow
from temporalio.common import VersioningBehavior
from temporalio.exceptions import ActivityError, CancelledError

with workflow.unsafe.imports_passed_through():
    from activities.messages.proposals import FailedProposal, ProposalInput, ProposeShares
    from activities.messages.stubs import ProposalActivityStubs
    from qmtl_sdk.contracts.rebalance_schedules import Firing
    from workflows.failures import failure_text
    from workflows.markdown import one_line, paragraphs, table, with_reason
    from workflows.options import FEW_TRIES, STORE
    from workflows.search_attributes import SEARCH_RUN, SEARCH_STEP

_HEADER = ("world", "share", "proposed", "why")


@workflow.defn(versioning_behavior=VersioningBehavior.PINNED)
class ProposalWorkflow:
    """Proposes shares of worlds by a schedule."""

    @workflow.run
    async def run(self, schedule: ProposalInput) -> Firing:
        """Propose shares for this firing. The result says what it decided."""
        command = ProposeShares(**schedule.model_dump(), at=workflow.info().start_time)
        self._show("propose", f"propose: proposes shares by the schedule {schedule.name}")
        try:
            firing = await workflow.execute_activity_method(
                ProposalActivityStubs.propose_shares,
                command,
                summary=one_line(f"propose shares by {schedule.name}, request a run where they differ"),
                **FEW_TRIES,
            )
        except ActivityError as error:
            if isinstance(error.cause, CancelledError):
                raise
            firing = await workflow.execute_local_activity_method(
                ProposalActivityStubs.record_failed_proposal,
                FailedProposal(**command.model_dump(), reason=failure_text(error)),
                summary="record why it failed",
                **STORE,
            )
        self._show_end(schedule.name, firing)
        return firing

    def _show_end(self, name: str, firing: Firing) -> None:
        rows = tuple(
            (item.world_id, f"{item.before:f}", f"{item.after:f}", item.why) for item in firing.shares
        )
        lines = [f"schedule {name}, fired at {firing.at:%Y-%m-%d %H:%M:%S} UTC"]
        if firing.run_id:
            lines.append(f"the run waits: `qmtl world rebalance-status {firing.run_id}`")
            workflow.upsert_search_attributes([SEARCH_RUN.value_set(firing.run_id)])
        if rows:
            lines.append(table(_HEADER, rows))
        self._show(firing.outcome, with_reason(firing.outcome, firing.reason), *lines)

    def _show(self, step: str, now: str, *lines: str) -> None:
        workflow.set_current_details(paragraphs([f"**{now}**", *lines]))
        workflow.upsert_search_attributes([SEARCH_STEP.value_set(step)])
