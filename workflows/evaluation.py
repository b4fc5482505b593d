"""The evaluation of a world, one judgment at a time: wait for requests → judge once for all of them → reply.

1. A submission requests a judgment by the signal `request`, sent together with the start, and gets the signal
   `judged` back. A person's request is the update `evaluate`, which returns the judgment. (Submissions come
   in hundreds, and Temporal accepts ten updates of one workflow at a time.)
2. The run takes all waiting requests, judges the whole world once for them, and replies to each.
3. It ends when no request comes for a while. A long series of judgments continues as new before its history
   grows too long. The next run takes over the requests that came by signal during the last judgment. Updates
   are rejected from then on, and sent again by their sender: a stream of them would let no run end.
"""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import VersioningBehavior
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.messages.evaluation import EvaluationInput, EvaluationRequest, JudgeCommand, Judgment
    from activities.messages.stubs import DecisionActivityStubs
    from workflows.markdown import one_line, paragraphs, plural, table
    from workflows.options import STORE
    from workflows.search_attributes import SEARCH_STEP

# A run without requests ends after this long.
IDLE = timedelta(seconds=5)

# A timer before a run continues as new, so that the judgment is in the history first. A request that comes
# while a workflow task continues as new makes that task fail, and a failed task repeats its judgment.
_RECORDED = timedelta(milliseconds=1)

# The type of the error that rejects an update because the run is about to continue as new.
CONTINUES_AS_NEW = "CONTINUES_AS_NEW"

# Waiting requests that the next run takes over at most: well below the 2 MB of a workflow's input.
_TAKEN_OVER = 1000


@workflow.defn(versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class EvaluationWorkflow:
    """Judges one world, for everyone who requests it."""

    @workflow.init
    def __init__(self, world: EvaluationInput) -> None:
        self._world = world
        self._judged = world.judged
        self._waiting = {request.request_id: request for request in world.waiting}
        self._updates: set[str] = set()  # the requests that an update of this run waits for
        self._judgments: dict[str, Judgment] = {}
        self._continues = False  # whether this run accepts no more updates

    @workflow.run
    async def run(self, world: EvaluationInput) -> Judgment | None:
        """Judge until no request comes. Returns the last judgment."""
        last: Judgment | None = None
        while await self._has_requests():
            last = await self._judge()
            if workflow.info().is_continue_as_new_suggested():
                await self._continue_as_new()
        return last

    async def _continue_as_new(self) -> None:
        """Continue as new, and hand the waiting requests over.

        Returns instead if another judgment must come first: an update can be answered by this run only. The
        wait ends without a judgment, because only the caller, which judges next, empties `_waiting`.
        """
        self._continues = True
        await workflow.sleep(_RECORDED)
        await workflow.wait_condition(lambda: self._update_waits or workflow.all_handlers_finished())
        if self._update_waits or len(self._waiting) > _TAKEN_OVER:
            return
        waiting = tuple(self._waiting.values())
        workflow.continue_as_new(self._world.model_copy(update={"judged": self._judged, "waiting": waiting}))

    @property
    def _update_waits(self) -> bool:
        """Whether an update waits for the next judgment."""
        return not self._updates.isdisjoint(self._waiting)

    async def _has_requests(self) -> bool:
        """Wait for a request. Returns False if none came and every update has returned."""
        try:
            await workflow.wait_condition(
                lambda: bool(self._waiting), timeout=IDLE, timeout_summary="waiting for another request"
            )
        except TimeoutError:
            await workflow.wait_condition(lambda: self._update_waits or workflow.all_handlers_finished())
        return bool(self._waiting)

    async def _judge(self) -> Judgment:
        batch = dict(self._waiting)
        first = next(iter(batch.values()))
        self._show("judging", f"judging for {plural(len(batch), 'request')}: {first.reason}")
        command = JudgeCommand(
            store_id=self._world.store_id,
            world_id=self._world.world_id,
            run_id=workflow.info().run_id,
            request_ids=tuple(batch),
            requested_by=first.requested_by,
        )
        judgment = await workflow.execute_local_activity_method(
            DecisionActivityStubs.judge,
            command,
            summary=one_line(f"judge world {self._world.world_id} by its policy: {first.reason}"),
            **STORE,
        )
        self._judged += 1
        for request_id in batch:
            del self._waiting[request_id]
            self._judgments[request_id] = judgment
        self._show("decided", f"{judgment.reason} (policy version {judgment.policy_version})", judgment)
        await asyncio.gather(*(self._reply(request) for request in batch.values() if request.reply_to))
        return judgment

    async def _reply(self, request: EvaluationRequest) -> None:
        """Signal the requesting workflow. One that has ended needs no reply: the decision is in the store."""
        requester = workflow.get_external_workflow_handle(request.reply_to, run_id=request.reply_run)
        try:
            await requester.signal("judged", request.request_id)
        except ApplicationError as error:
            workflow.logger.info("the requesting workflow has ended: %s", error)

    @workflow.signal
    def request(self, request: EvaluationRequest) -> None:
        """Request a judgment, with a reply by signal."""
        self._waiting[request.request_id] = request

    @workflow.update
    async def evaluate(self, request: EvaluationRequest) -> Judgment:
        """Request a judgment and wait for it. Idempotent: a repeated request returns the first judgment."""
        if request.request_id not in self._judgments:
            self._waiting[request.request_id] = request
            self._updates.add(request.request_id)
        await workflow.wait_condition(lambda: request.request_id in self._judgments)
        self._updates.discard(request.request_id)
        return self._judgments[request.request_id]

    @evaluate.validator
    def _accept(self, request: EvaluationRequest) -> None:
        if self._continues and request.request_id not in self._judgments:
            raise ApplicationError("the evaluation continues as new; send it again", type=CONTINUES_AS_NEW)

    def _show(self, status: str, text: str, judgment: Judgment | None = None) -> None:
        lines = [
            f"**{text}**",
            f"world {self._world.world_id}, {plural(self._judged, 'judgment')} in this series",
        ]
        if judgment is not None:
            lines.append(table(("strategy", "decision", "reason"), judgment.lines))
            if judgment.strategies > len(judgment.lines):
                lines.append(f"and {judgment.strategies - len(judgment.lines)} more")
        workflow.set_current_details(paragraphs(lines))
        workflow.upsert_search_attributes([SEARCH_STEP.value_set(status)])
