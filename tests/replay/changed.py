"""The evaluation with its judgment left out: what an incompatible change looks like. In a module of its own, as workflows are."""

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
