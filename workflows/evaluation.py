"""The judgment of a world, one at a time: wait → judge for all who wait → answer them.

1. A submission asks by the signal `request`, sent together with the start, and is signalled back; a person asks by the update `evaluate`, which waits for
   its answer. (Submissions come in hundreds, and Temporal takes ten updates of one workflow at a time.)
2. The run takes all that wait, judges the whole world once for them, and answers each.
3. When nobody asks any more it ends; a long line of judgments continues as new before its history grows too long.
"""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.messages.evaluation import EvaluationInput, EvaluationRequest, JudgeCommand, Judgment
    from activities.messages.stubs import DecisionActivityStubs
    from workflows.shared import SEARCH_STAGE, STORE, table

IDLE = timedelta(seconds=5)


@workflow.defn
class EvaluationWorkflow:
    @workflow.init
    def __init__(self, world: EvaluationInput) -> None:
        self._world = world
        self._judged = world.judged
        self._waiting: dict[str, EvaluationRequest] = {}
        self._answers: dict[str, Judgment] = {}

    @workflow.run
    async def run(self, world: EvaluationInput) -> Judgment | None:
        last: Judgment | None = None
        while await self._someone_asks():
            last = await self._judge()
            if workflow.info().is_continue_as_new_suggested():
                await workflow.wait_condition(lambda: not self._waiting and workflow.all_handlers_finished())
                workflow.continue_as_new(world.model_copy(update={"judged": self._judged}))
        return last

    async def _someone_asks(self) -> bool:
        """False when nobody has asked for a while and everyone has their answer."""
        try:
            await workflow.wait_condition(
                lambda: bool(self._waiting), timeout=IDLE, timeout_summary="waiting for another request"
            )
        except TimeoutError:
            await workflow.wait_condition(workflow.all_handlers_finished)
        return bool(self._waiting)

    async def _judge(self) -> Judgment:
        batch = dict(self._waiting)
        first = next(iter(batch.values()))
        self._show(
            "judging",
            f"judging for {len(batch)} {'request' if len(batch) == 1 else 'requests'}: {first.reason}",
        )
        command = JudgeCommand(
            store_id=self._world.store_id,
            world_id=self._world.world_id,
            run_id=workflow.info().run_id,
            request_ids=tuple(batch),
            asked_by=first.asked_by,
            renewal=all(request.renewal for request in batch.values()),
        )
        judgment = await workflow.execute_local_activity_method(
            DecisionActivityStubs.judge,
            command,
            summary=f"judge world {self._world.world_id} by its policy",
            **STORE,
        )
        self._judged += 1
        for request_id in batch:
            del self._waiting[request_id]
            self._answers[request_id] = judgment
        self._show("decided", f"{judgment.reason} (policy version {judgment.policy_version})", judgment)
        await asyncio.gather(*(self._reply(request) for request in batch.values() if request.reply_to))
        return judgment

    async def _reply(self, request: EvaluationRequest) -> None:
        """Tell the workflow that asked. One that has ended needs no answer: it finds the decision in the store if it is ever asked for."""
        asker = workflow.get_external_workflow_handle(request.reply_to, run_id=request.reply_run)
        try:
            await asker.signal("judged", request.request_id)
        except ApplicationError as error:
            workflow.logger.info("nobody to answer: %s", error)

    @workflow.signal
    def request(self, request: EvaluationRequest) -> None:
        self._waiting[request.request_id] = request

    @workflow.update
    async def evaluate(self, request: EvaluationRequest) -> Judgment:
        if request.request_id not in self._answers:
            self._waiting[request.request_id] = request
        await workflow.wait_condition(lambda: request.request_id in self._answers)
        return self._answers[request.request_id]

    def _show(self, stage: str, step: str, judgment: Judgment | None = None) -> None:
        lines = [f"**{step}**", f"world {self._world.world_id}, {self._judged} judgments in this line"]
        if judgment is not None:
            lines.append(table(("strategy", "decision", "why"), judgment.lines))
            if judgment.strategies > len(judgment.lines):
                lines.append(f"and {judgment.strategies - len(judgment.lines)} more")
        workflow.set_current_details("\n\n".join(lines)[:18_000])
        workflow.upsert_search_attributes([SEARCH_STAGE.value_set(stage)])
