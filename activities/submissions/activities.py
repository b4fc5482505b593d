"""Activities of SubmissionWorkflow: read a command, call logic and stores, return a result."""

from dataclasses import dataclass
from typing import Protocol

from temporalio import activity

from activities.artifacts.store import ArtifactStore
from activities.messages.stubs import SubmissionActivityStubs
from activities.messages.submission import (
    AdmitRun,
    ConcludeSubmission,
    Conclusion,
    EvidenceBody,
    MeasureCommand,
    RejectCommand,
    RunContextBody,
)
from activities.submissions.admission import SqlAdmissions
from activities.submissions.context import ComputeContextService, ContextSources
from activities.submissions.evidence import data_range, examine, measured_fingerprint, sectors
from activities.submissions.self_reported import why_self_reported
from activities.submissions.store import CommitLogStore, RunStore
from activities.submissions.validations import validation_id, validations
from qmtl_sdk.contracts.dag import Dag
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import SubmissionAck, SubmissionOutcome


class AnsweredRequests(Protocol):
    """Finds the decision that answered an evaluation request. Decisions lie above this folder."""

    def answer(self, request_id: str) -> DecisionEnvelope | None:
        """Return the decision; None where the request was not answered."""


@dataclass(frozen=True)
class SubmissionStores:
    """The stores that the activities of a submission use."""

    log: CommitLogStore
    runs: RunStore
    admissions: SqlAdmissions
    artifacts: ArtifactStore
    answers: AnsweredRequests
    context: ContextSources


class SubmissionActivities(SubmissionActivityStubs):
    """Each activity stores its result once for a run; a repetition returns what is stored."""

    def __init__(self, stores: SubmissionStores) -> None:
        self._stores = stores

    @activity.defn(no_thread_cancel_exception=True)
    def admit_run(self, command: AdmitRun) -> SubmissionAck:
        """Decide the context of a run, bind its strategy, add what is new to the graph, record the answer."""
        submit = self._stores.log.body(command.log_key)
        run = self._stores.runs.run(command.run_id)
        if run is None:
            run = ComputeContextService(self._stores.context).run(command.run_id, submit)
        return self._stores.admissions.admit(command, run, submit)

    @activity.defn(no_thread_cancel_exception=True)
    def measure(self, command: MeasureCommand) -> dict[str, float | None]:
        """Compute and store the metrics of the uploaded returns, or find them under the same EvalKeys."""
        run = self._run(command.run_id)
        dag = self._stores.log.body(command.log_key).dag
        checked = validations(dag, run, measured_fingerprint(dag, run))
        measured_as = validation_id(checked, dag, run, command.evidence.returns_hash)
        found = self._stores.runs.validated(checked, measured_as)
        if found is None:
            evidence = self._measured(command, run, dag, measured_as)
        else:
            evidence = found.model_copy(update={"run_id": run.run_id, "precheck": command.evidence.precheck})
        return self._stores.runs.save_evidence(evidence, checked).metrics

    def _measured(
        self, command: MeasureCommand, run: RunContextBody, dag: Dag, measured_as: str
    ) -> EvidenceBody:
        metrics, returns = examine(self._stores.artifacts.get(command.evidence.returns_hash), dag, run)
        first, last = data_range(returns, run)
        return EvidenceBody(
            run_id=run.run_id,
            world_id=run.world_id,
            strategy_id=run.strategy_id,
            metrics=metrics,
            returns_hash=command.evidence.returns_hash,
            dataset_fingerprint=measured_fingerprint(dag, run),
            self_reported=why_self_reported(returns, dag, run),
            interval_s=returns.interval,
            as_of=run.context.as_of,
            data_first=first,
            data_last=last,
            precheck=command.evidence.precheck,
            shadow=run.context.execution_domain is Domain.SHADOW,
            sectors=sectors(returns, run),
            validation_id=measured_as,
        )

    @activity.defn(no_thread_cancel_exception=True)
    def reject(self, command: RejectCommand) -> None:
        """Store why a run has no metrics, so that the judgment can say so."""
        shadow = self._run(command.run_id).context.execution_domain is Domain.SHADOW
        evidence = EvidenceBody(
            run_id=command.run_id,
            world_id=command.world_id,
            strategy_id=command.strategy_id,
            error_code=command.error_code,
            error=command.error,
            shadow=shadow,
            examined=command.examined,
        )
        self._stores.runs.save_evidence(evidence)

    @activity.defn(no_thread_cancel_exception=True)
    def conclude(self, command: ConcludeSubmission) -> Conclusion:
        """Store how a run ended: the decision that judged it, or why there is none."""
        decision = self._stores.answers.answer(command.request_id) if command.request_id else None
        evidence = self._stores.runs.evidence(command.run_id)
        activations = self._stores.context.activations.activations(command.world_id, command.strategy_id)
        outcome = self._stores.runs.save_outcome(
            SubmissionOutcome(
                world_id=command.world_id,
                strategy_id=command.strategy_id,
                run_id=command.run_id,
                status=_status(command.strategy_id, decision, evidence),
                metrics=evidence.metrics if evidence else {},
                returns_hash=evidence.returns_hash if evidence else "",
                self_reported=evidence.self_reported if evidence else "",
                decision=decision,
                activation=next(iter(activations), None),
                error_code=command.error_code or (evidence.error_code if evidence else ""),
                error=command.error or (evidence.error if evidence else ""),
            )
        )
        mine = outcome.decision.of(command.strategy_id) if outcome.decision else None
        return Conclusion(
            run_id=command.run_id,
            status=outcome.status,
            active=bool(mine and mine.active),
            rank=mine.rank if mine else None,
            weight=mine.weight if mine else 0.0,
            reason=mine.explanation if mine else outcome.error,
            metrics=outcome.metrics,
        )

    def _run(self, run_id: str) -> RunContextBody:
        run = self._stores.runs.run(run_id)
        if run is None:
            raise QmtlError(
                "E_FOREIGN_STORE",
                f"the store of this worker has no run {run_id}",
                "check gateway.database_dsn of this worker",
            )
        return run


def _status(strategy_id: str, decision: DecisionEnvelope | None, evidence: EvidenceBody | None) -> str:
    if evidence is not None and evidence.kind == "failed":
        return "failed"
    if decision is not None and decision.of(strategy_id) is not None:
        return "decided"
    if evidence is not None and evidence.shadow and not evidence.error_code:
        return "shadow"
    return "failed"
