"""The evaluation without its judgment: an incompatible change. In its own module, as workflows are."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.messages.evaluation import EvaluationInput, EvaluationRequest


@workflow.defn(name="EvaluationWorkflow")
class Changed:
    @workflow.run
    async def run(self, world: EvaluationInput) -> None:
        await workflow.sleep(5)

    @workflow.update
    async def evaluate(self, request: EvaluationRequest) -> None:
        await workflow.sleep(1)
