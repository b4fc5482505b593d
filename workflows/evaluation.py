"""The judgment of a world, one at a time: wait → judge for all who wait → answer them.

1. `evaluate` (an update, sent together with the start) puts a request in the queue and waits for its answer.
2. The run takes all that wait, judges the whole world once for them, and answers each with the stored decision.
3. When nobody asks any more it ends; a long line of judgments continues as new before its history grows too long.
"""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.commands import EvaluateRequest, EvaluationInput, JudgeCommand, Judgment
    from activities.worlds.activities import WorldActivities
    from workflows.shared import SEARCH_STAGE, STORE, table

IDLE = timedelta(seconds=5)


@workflow.defn
class EvaluationWorkflow:
    @workflow.init
    def __init__(self, world: EvaluationInput) -> None:
        self._world = world
        self._judged = world.judged
        self._waiting: dict[str, EvaluateRequest] = {}
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
            await workflow.wait_condition(lambda: bool(self._waiting), timeout=IDLE, timeout_summary="waiting for another request")
        except TimeoutError:
            await workflow.wait_condition(workflow.all_handlers_finished)
        return bool(self._waiting)

    async def _judge(self) -> Judgment:
        batch = tuple(self._waiting)
        self._show("judging", f"judging for {len(batch)} {'request' if len(batch) == 1 else 'requests'}: {self._waiting[batch[0]].reason}")
        command = JudgeCommand(store_id=self._world.store_id, world_id=self._world.world_id, run_id=workflow.info().run_id, request_ids=batch)
        judgment = await workflow.execute_local_activity_method(WorldActivities.judge, command, summary=f"judge world {self._world.world_id} by its policy", **STORE)
        self._judged += 1
        for request_id in batch:
            del self._waiting[request_id]
            self._answers[request_id] = judgment
        self._show("decided", f"{judgment.reason} (policy version {judgment.policy_version})", judgment)
        return judgment

    @workflow.update
    async def evaluate(self, request: EvaluateRequest) -> Judgment:
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


