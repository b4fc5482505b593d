"""Upkeep, on a Temporal Schedule: archive and drop queues, one by one, then archive the rows of tables.

What can't be archived and read back is left unchanged. The result names it, and the next run tries again.
"""

from temporalio import workflow
from temporalio.common import VersioningBehavior
from temporalio.exceptions import ActivityError, CancelledError, FailureError

with workflow.unsafe.imports_passed_through():
    from activities.messages.stubs import QueueActivityStubs, RetentionActivityStubs
    from activities.messages.upkeep import UpkeepDone, UpkeepInput, UpkeepRows, UpkeepTopic
    from workflows.markdown import one_line, paragraphs
    from workflows.options import FEW_TRIES, SLOW
    from workflows.search_attributes import SEARCH_STEP

# Queues of one run: each adds a few events to its history, which Temporal limits to 51 200. The next run does
# the rest.
_QUEUES_PER_RUN = 2000

# Activities for one kind of rows in a run. Each works for a minute, so a backlog is done in some runs.
_TURNS_PER_KIND = 20

# Failures that the Temporal UI shows; the result holds all of them.
_SHOWN_FAILURES = 20


@workflow.defn(versioning_behavior=VersioningBehavior.PINNED)
class UpkeepWorkflow:
    """Applies retention to the queues and tables of a store."""

    @workflow.init
    def __init__(self, upkeep: UpkeepInput) -> None:
        self._upkeep = upkeep.model_copy(update={"now": upkeep.now or workflow.now().isoformat()})
        self._archived = 0
        self._dropped = 0
        self._rows = 0
        self._failed: list[str] = []

    @workflow.run
    async def run(self, upkeep: UpkeepInput) -> UpkeepDone:
        """Apply retention to every queue that is due, and to the tables. Returns totals."""
        self._show("listing", "listing the queues with messages beyond their retention")
        due = await workflow.execute_activity_method(
            QueueActivityStubs.queues_due, self._upkeep, summary="list the queues that are due", **SLOW
        )
        for number, topic in enumerate(due[:_QUEUES_PER_RUN], 1):
            self._show("archiving", f"queue {number} of {len(due)}: {topic}")
            await self._apply_retention(topic)
        kinds = await workflow.execute_activity_method(
            RetentionActivityStubs.retained_kinds, self._upkeep, summary="list the kinds of rows", **SLOW
        )
        for kind in kinds:
            self._show("archiving rows", f"rows: {kind}")
            await self._archive_rows(kind)
        self._show(
            "done",
            f"{len(due)} queues due: {self._archived} messages archived, {self._dropped} queues dropped;"
            f" {self._rows} rows archived; {len(self._failed)} failed",
        )
        return UpkeepDone(
            due=len(due),
            archived=self._archived,
            dropped=self._dropped,
            rows=self._rows,
            failed=tuple(self._failed),
        )

    async def _apply_retention(self, topic: str) -> None:
        command = UpkeepTopic(store_id=self._upkeep.store_id, topic=topic, now=self._upkeep.now)
        try:
            result = await workflow.execute_activity_method(
                QueueActivityStubs.apply_retention,
                command,
                summary=one_line(f"archive, read back, compare: {topic}"),
                **FEW_TRIES,
            )
        except ActivityError as error:
            self._failed.append(f"{topic}: {_why(error)}")
            return
        self._archived += result.archived
        self._dropped += result.dropped

    async def _archive_rows(self, kind: str) -> None:
        command = UpkeepRows(store_id=self._upkeep.store_id, kind=kind, now=self._upkeep.now)
        for _ in range(_TURNS_PER_KIND):
            try:
                result = await workflow.execute_activity_method(
                    RetentionActivityStubs.archive_rows,
                    command,
                    summary=f"archive, read back, compare, remove: {kind}",
                    **FEW_TRIES,
                )
            except ActivityError as error:
                self._failed.append(f"{kind}: {_why(error)}")
                return
            self._rows += result.rows
            if not result.more:
                return

    def _show(self, status: str, text: str) -> None:
        lines = [f"**{text}**", *(f"- {failed}" for failed in self._failed[:_SHOWN_FAILURES])]
        workflow.set_current_details(paragraphs(lines))
        workflow.upsert_search_attributes([SEARCH_STEP.value_set(status)])


def _why(error: ActivityError) -> str:
    """Return why an attempt failed. Raises ActivityError where the workflow was cancelled."""
    if isinstance(error.cause, CancelledError):
        raise error
    return error.cause.message if isinstance(error.cause, FailureError) else str(error)
