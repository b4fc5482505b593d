"""Upkeep, by a Temporal Schedule: which queues have something to go → archive and remove it, queue by queue.

A queue whose archive can't be read back keeps everything that it had; it is named in the result, and tried again by the next run.
"""

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.messages.stubs import QueueActivityStubs
    from activities.messages.upkeep import UpkeepDone, UpkeepInput, UpkeepTopic
    from workflows.shared import SEARCH_STAGE, SLOW

AT_ONCE = 2000


@workflow.defn
class UpkeepWorkflow:
    @workflow.init
    def __init__(self, upkeep: UpkeepInput) -> None:
        self._upkeep = upkeep.model_copy(update={"now": upkeep.now or workflow.now().isoformat()})
        self._archived = self._dropped = 0
        self._failed: list[str] = []

    @workflow.run
    async def run(self, upkeep: UpkeepInput) -> UpkeepDone:
        self._show("looking", "looking for queues with messages beyond their retention")
        due = await workflow.execute_activity_method(
            QueueActivityStubs.queues_due, self._upkeep, summary="which queues have something to go", **SLOW
        )
        for number, topic in enumerate(due[:AT_ONCE], 1):
            self._show("keeping", f"queue {number} of {len(due)}: {topic}")
            await self._keep(topic)
        self._show(
            "done",
            f"{len(due)} queues looked at: {self._archived} messages archived, {self._dropped} queues dropped, {len(self._failed)} failed",
        )
        return UpkeepDone(
            looked_at=len(due), archived=self._archived, dropped=self._dropped, failed=tuple(self._failed)
        )

    async def _keep(self, topic: str) -> None:
        command = UpkeepTopic(store_id=self._upkeep.store_id, topic=topic, now=self._upkeep.now)
        try:
            kept = await workflow.execute_activity_method(
                QueueActivityStubs.apply_retention,
                command,
                summary=f"archive, read back, compare: {topic}"[:200],
                **SLOW,
            )
        except ActivityError as error:
            if not isinstance(error.cause, ApplicationError):
                raise
            self._failed.append(f"{topic}: {error.cause.message}")
            return
        self._archived, self._dropped = self._archived + kept.archived, self._dropped + kept.dropped

    def _show(self, stage: str, step: str) -> None:
        lines = [f"**{step}**", *(f"- {failed}" for failed in self._failed[:20])]
        workflow.set_current_details("\n\n".join(lines))
        workflow.upsert_search_attributes([SEARCH_STAGE.value_set(stage)])
