"""A submission: admit → compute under a lease → measure → evaluate → conclude.

1. `admit` (an update, sent together with the start) begins the run, stores the diff and answers with the queue map, the context and a lease. The same
   runner may ask again and gets the same lease; a second one is told that someone computes already. What was answered is noted in the commit log
   before it is answered, so that a retry after the run has ended does not start another.
2. The lease is an activity that a runner outside completes. Its heartbeats carry its progress.
3. A lease that times out means that the runner is gone, one given back that it stopped. The workflow waits until a runner asks again, and hands out a
   new lease with the last progress. A runner whose strategy can't be computed says so, and the submission is judged as rejected.
4. The service measures the uploaded returns; returns that don't fit the run are rejected in the same way.
5. The world is judged, once for all that wait for it, and the outcome is stored.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.exceptions import TimeoutError as ActivityTimeoutError

with workflow.unsafe.imports_passed_through():
    from activities.messages.evaluation import EvaluationRequest, RequestEvaluation
    from activities.messages.stubs import EvaluationActivityStubs, SubmissionActivityStubs
    from activities.messages.submission import (
        Admit,
        ConcludeSubmission,
        Conclusion,
        DiffCommand,
        DiffResult,
        MeasureCommand,
        RecordAdmission,
        RejectCommand,
        RunCommand,
        RunContextBody,
        SubmissionInput,
        SubmissionProgress,
    )
    from activities.submissions.lease import compute_lease
    from qmtl_sdk.contracts.domains import Domain
    from qmtl_sdk.contracts.identity import compute_key
    from qmtl_sdk.contracts.submission import EvidenceRef, Heartbeat, Lease, QueueTarget, SubmissionAck
    from workflows.shared import SEARCH_DOMAIN, SEARCH_STAGE, SLOW, STORE, WORLD, figures

LEASE_LIMIT, ASK_AGAIN = timedelta(days=7), timedelta(minutes=1)


class RejectionError(Exception):
    """The strategy can't be measured; the judgment will say why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@workflow.defn
class SubmissionWorkflow:
    @workflow.init
    def __init__(self, submission: SubmissionInput) -> None:
        self._submission = submission
        self._run_id = workflow.info().run_id
        self._admitting = asyncio.Lock()  # two askers at once must not both begin the run
        self._run: RunContextBody | None = None
        self._diff: DiffResult | None = None
        self._refusal: ApplicationError | None = None
        self._holder, self._leases = "", 0
        self._open_lease = ""  # from when it is handed out until it ends
        self._lease: asyncio.Task[EvidenceRef] | None = None
        self._reached = Heartbeat()
        self._cancelled = self._judged = self._past_computing = False
        self._step = "waiting to be admitted"
        self._metrics: dict[str, float | None] = {}

    @workflow.run
    async def run(self, submission: SubmissionInput) -> Conclusion:
        try:
            error = await self._come_to_evidence()
        except TimeoutError:
            error = RejectionError(
                "E_ABANDONED",
                f"no runner came to compute it within {timedelta(seconds=submission.abandon_after_s)}",
            )
        self._past_computing = True
        if self._refusal is not None:
            await workflow.wait_condition(workflow.all_handlers_finished)
            raise self._refusal
        judged = "" if self._cancelled or self._run is None or self._shadow else await self._evaluate()
        conclusion = await self._conclude(judged, error)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return conclusion

    async def _come_to_evidence(self) -> RejectionError | None:
        """Compute and measure. None when the metrics are stored, otherwise why there are none."""
        try:
            while (evidence := await self._compute()) is None:
                pass
            self._show("measuring", "measuring the returns")
            command = MeasureCommand(**self._about(), evidence=evidence)
            self._metrics = await self._measure(command)
            return None
        except RejectionError as error:
            self._past_computing = True  # who asks while this is being judged gets no lease
            if self._run is not None and not self._cancelled:
                reject = RejectCommand(
                    **self._about(),
                    strategy_id=self._submission.strategy_id,
                    error_code=error.code,
                    error=error.message,
                )
                await workflow.execute_local_activity_method(
                    SubmissionActivityStubs.reject, reject, summary="keep why there are no metrics", **STORE
                )
            return error

    async def _compute(self) -> EvidenceRef | None:
        """Wait for a runner and for its evidence; None when it is gone. What it had reached is kept for the next one."""
        if not self._holder:
            reached = (
                f" It had reached {self._reached.node} bar {self._reached.bar}." if self._reached.node else ""
            )
            self._show("waiting", f"waiting for a runner: submit the strategy again to compute it.{reached}")
        limit = timedelta(seconds=self._submission.abandon_after_s)
        await workflow.wait_condition(
            lambda: bool(self._holder) or self._refusal is not None or self._cancelled,
            timeout=limit,
            timeout_summary="waiting for a runner",
        )
        if self._refusal is not None:
            raise RejectionError(self._refusal.type or "E_INTERNAL", str(self._refusal))
        if self._cancelled:
            raise RejectionError("E_CANCELLED", "the submission was cancelled")
        self._show("computing", f"{self._holder} computes {self._submission.nodes} nodes")
        self._lease = asyncio.create_task(self._hold())
        try:
            return await self._lease
        except ActivityError as error:
            self._lease_ended(error)
            return None
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            raise RejectionError("E_CANCELLED", "the submission was cancelled") from None
        finally:
            self._open_lease = ""

    async def _hold(self) -> EvidenceRef:
        return await workflow.execute_activity(
            compute_lease,
            RunCommand(**self._about()),
            activity_id=self._open_lease,
            task_queue=WORLD,
            start_to_close_timeout=LEASE_LIMIT,
            heartbeat_timeout=timedelta(seconds=self._submission.heartbeat_timeout_s),
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary=f"compute lease of {self._holder}",
        )

    def _lease_ended(self, error: ActivityError) -> None:
        """The runner is gone (timed out, or gave the lease back). Raises RejectionError where it said that computing again would fail again."""
        cause = error.cause
        if is_cancelled_exception(error) and self._cancelled:
            raise RejectionError("E_CANCELLED", "the submission was cancelled") from error
        self._holder = ""
        if isinstance(cause, ActivityTimeoutError):
            if cause.last_heartbeat_details:
                self._reached = Heartbeat.model_validate(cause.last_heartbeat_details[0])
        elif isinstance(cause, ApplicationError):
            if cause.non_retryable:
                raise RejectionError(cause.type or "E_COMPUTE_FAILED", cause.message) from error
            if cause.details:
                self._reached = Heartbeat.model_validate(cause.details[0])
        else:
            raise error

    async def _measure(self, command: MeasureCommand) -> dict[str, float | None]:
        try:
            return await workflow.execute_activity_method(
                SubmissionActivityStubs.measure,
                command,
                summary="compute the metrics from the returns",
                **SLOW,
            )
        except ActivityError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError) and cause.non_retryable:
                raise RejectionError(cause.type or "E_RETURNS_INVALID", cause.message) from error
            raise

    async def _evaluate(self) -> str:
        """Have the world judged; the id of the request, under which the decision is found."""
        self._show("evaluating", f"world {self._submission.world_id} is being judged")
        request = EvaluationRequest(
            request_id=f"submission:{self._run_id}",
            reason=f"{self._submission.name or self._submission.strategy_id[:17]} was submitted",
            reply_to=workflow.info().workflow_id,
            reply_run=self._run_id,
        )
        command = RequestEvaluation(
            store_id=self._submission.store_id, world_id=self._submission.world_id, request=request
        )
        while not self._judged:
            # Asked again where no answer comes: the judgment may have been terminated by hand. The same request is answered once.
            await workflow.execute_activity_method(
                EvaluationActivityStubs.request_evaluation,
                command,
                summary=f"ask for a judgment of world {self._submission.world_id}",
                **SLOW,
            )
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: self._judged, timeout=ASK_AGAIN, timeout_summary="waiting for the judgment"
                )
        return request.request_id

    async def _conclude(self, request_id: str, error: RejectionError | None) -> Conclusion:
        command = ConcludeSubmission(
            store_id=self._submission.store_id,
            run_id=self._run_id,
            world_id=self._submission.world_id,
            strategy_id=self._submission.strategy_id,
            request_id=request_id,
            error_code=error.code if error else "",
            error=error.message if error else "",
        )
        conclusion = await workflow.execute_local_activity_method(
            SubmissionActivityStubs.conclude, command, summary="keep the outcome", **STORE
        )
        verdict = (
            "computed in shadow"
            if conclusion.status == "shadow"
            else f"active, rank {conclusion.rank}, weight {conclusion.weight:.3g}"
            if conclusion.active
            else "not active"
        )
        self._show(conclusion.status, f"{conclusion.status}: {verdict}. {conclusion.reason}")
        return conclusion

    @workflow.update
    async def admit(self, ask: Admit) -> SubmissionAck:
        async with self._admitting:
            if self._refusal is not None:
                raise self._refusal
            if self._run is None or self._diff is None:
                try:
                    await self._begin()
                except ActivityError as error:
                    # The update is refused, and the run ends: a submission that can't begin must not wait for ever.
                    self._refusal = _refusal(error)
                    raise self._refusal from error
            if ask.runner and self._needs_runner:
                self._holder = ask.runner
                self._leases += 1
                self._open_lease = f"lease-{self._leases}"
            ack = self._ack(ask)
            admitted = RecordAdmission(
                store_id=self._submission.store_id,
                idempotency_key=ask.idempotency_key,
                run_id=self._run_id,
                ack=ack,
            )
            await workflow.execute_local_activity_method(
                SubmissionActivityStubs.record_admission,
                admitted,
                summary="note the answer in the commit log",
                **STORE,
            )
            return ack

    async def _begin(self) -> None:
        self._show("admitting", "binding the strategy and its data to the world")
        about = RunCommand(**self._about())
        self._run = await workflow.execute_local_activity_method(
            SubmissionActivityStubs.begin_run, about, summary="bind to the world, decide the context", **STORE
        )
        domain = self._run.context.execution_domain.value
        diff = DiffCommand(**self._about(), execution_domain=domain)
        self._diff = await workflow.execute_local_activity_method(
            SubmissionActivityStubs.diff, diff, summary="add what is new to the graph, plan queues", **STORE
        )
        workflow.upsert_search_attributes([SEARCH_DOMAIN.value_set(domain)])

    def _ack(self, ask: Admit) -> SubmissionAck:
        assert self._run is not None  # _begin set both
        assert self._diff is not None
        context, reused = self._run.context, set(self._diff.reused)
        held = bool(ask.runner) and self._holder == ask.runner and bool(self._open_lease)
        scope = (context.world_id, context.execution_domain.value, context.as_of or "", context.partition)
        return SubmissionAck(
            world_id=self._submission.world_id,
            strategy_id=self._submission.strategy_id,
            workflow_id=workflow.info().workflow_id,
            run_id=self._run_id,
            queue_map={
                node_id: QueueTarget(
                    topic=topic, compute_key=compute_key(node_id, *scope), reused=node_id in reused
                )
                for node_id, topic in self._diff.topics.items()
            },
            nodes_new=len(self._diff.new),
            nodes_reused=len(self._diff.reused),
            sentinel_id=self._diff.sentinel_id,
            context=context,
            bindings=self._run.bindings,
            execution=self._run.execution,
            lease=Lease(
                lease_id=f"{self._run_id}.{self._open_lease}",
                heartbeat_timeout_s=self._submission.heartbeat_timeout_s,
                resume_from=self._reached.json_dict(),
            )
            if held
            else None,
        )

    @workflow.signal
    def judged(self, request_id: str) -> None:
        self._judged = True

    @workflow.signal
    def cancel(self) -> None:
        self._cancelled = True
        if self._lease is not None and not self._lease.done():
            self._lease.cancel()

    @workflow.query
    def progress(self) -> SubmissionProgress:
        return SubmissionProgress(
            step=self._step,
            needs_runner=self._needs_runner,
            lease_id=f"{self._run_id}.{self._open_lease}" if self._open_lease else "",
            reached=self._reached,
        )

    @property
    def _needs_runner(self) -> bool:
        return not self._holder and not self._past_computing

    @property
    def _shadow(self) -> bool:
        """Shadow is computed and measured beside the world: it is no evidence, and nothing is judged for it."""
        return self._run is not None and self._run.context.execution_domain is Domain.SHADOW

    def _about(self) -> dict[str, str]:
        mine = self._submission
        return {
            "store_id": mine.store_id,
            "run_id": self._run_id,
            "log_key": mine.log_key,
            "world_id": mine.world_id,
        }

    def _show(self, stage: str, step: str) -> None:
        self._step = step
        mine = self._submission
        lines = [f"**{step}**", f"{mine.name or 'strategy'} in world {mine.world_id}: {mine.nodes} nodes"]
        if self._diff is not None:
            lines[-1] += f", {len(self._diff.new)} new, {len(self._diff.reused)} reused"
        if self._run is not None:
            context = self._run.context
            lines.append(
                f"computed in {context.execution_domain.value} as of {context.as_of or 'no pinned time'}"
                + (f" (safe mode: {context.downgrade_reason})" if context.downgrade_reason else "")
            )
        if self._metrics:
            lines.append(f"measured: {figures(self._metrics)}")
        workflow.set_current_details("\n\n".join(lines))
        workflow.upsert_search_attributes([SEARCH_STAGE.value_set(stage)])


def _refusal(error: ActivityError) -> ApplicationError:
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return ApplicationError(cause.message, *cause.details, type=cause.type, non_retryable=True)
    return ApplicationError(str(cause or error), type="E_INTERNAL", non_retryable=True)
