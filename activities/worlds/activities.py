"""Thin: a contract in, logic and stores called, a contract out."""

from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.common import WorkflowIDConflictPolicy

from activities.artifacts.store import ArtifactStore
from activities.commands import (
    ConcludeSubmission,
    Conclusion,
    EvaluationInput,
    JudgeCommand,
    Judgment,
    MeasureCommand,
    RejectCommand,
    RenewalDone,
    RenewalInput,
    RequestEvaluation,
    RunCommand,
)
from activities.events.store import CommitLogStore
from activities.worlds.context import ComputeContextService
from activities.worlds.correlation import Correlations
from activities.worlds.decision import etag_of, judge, summary
from activities.worlds.evidence import data_range, examine, sectors, validations
from activities.worlds.store import (
    DecisionInputs,
    EvidenceBody,
    RunContextBody,
    StoredDecision,
    WorldStore,
    furthest,
)
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import Outcome
from qmtl_sdk.contracts.worlds import DecisionEnvelope, StrategyDecision

_LINES = 30
RENEW_EVERY = timedelta(minutes=1)
RENEW_WITHIN = 2 * RENEW_EVERY


class WorldActivities:
    def __init__(self, worlds: WorldStore, log: CommitLogStore, artifacts: ArtifactStore) -> None:
        self._worlds, self._log, self._artifacts = worlds, log, artifacts
        self._correlations = Correlations(artifacts)

    @activity.defn(no_thread_cancel_exception=True)
    def begin_run(self, command: RunCommand) -> RunContextBody:
        done = self._worlds.run(command.run_id)
        if done is not None:
            return done
        return self._worlds.begin_run(
            ComputeContextService(self._worlds).run(command.run_id, self._log.body(command.log_key))
        )

    @activity.defn(no_thread_cancel_exception=True)
    def measure(self, command: MeasureCommand) -> dict[str, float | None]:
        """Compute the metrics from the uploaded returns and keep them."""
        run, submit = self._run(command.run_id), self._log.body(command.log_key)
        metrics, returns = examine(self._artifacts.get(command.evidence.returns_hash), submit.dag, run)
        first, last = data_range(returns, run)
        evidence = EvidenceBody(
            run_id=run.run_id,
            world_id=run.world_id,
            strategy_id=run.strategy_id,
            metrics=metrics,
            returns_hash=command.evidence.returns_hash,
            dataset_fingerprint=run.context.dataset_fingerprint or command.evidence.dataset_fingerprint,
            as_of=run.context.as_of,
            data_first=first,
            data_last=last,
            precheck=command.evidence.precheck,
            shadow=run.context.execution_domain is Domain.SHADOW,
            sectors=sectors(returns, run),
        )
        return self._worlds.save_evidence(
            evidence, validations(submit.dag, run, evidence.dataset_fingerprint)
        ).metrics

    @activity.defn(no_thread_cancel_exception=True)
    def reject(self, command: RejectCommand) -> None:
        """Keep why a run has no metrics, so that the judgment can say so."""
        shadow = self._run(command.run_id).context.execution_domain is Domain.SHADOW
        evidence = EvidenceBody(
            run_id=command.run_id,
            world_id=command.world_id,
            strategy_id=command.strategy_id,
            error_code=command.error_code,
            error=command.error,
            shadow=shadow,
        )
        self._worlds.save_evidence(evidence)

    @activity.defn(no_thread_cancel_exception=True)
    def judge(self, command: JudgeCommand) -> Judgment:
        """Judge the whole world and keep the decision as the answer to these requests. A request that has been answered gets its answer again."""
        answered = self._worlds.answered(command.request_ids)
        if len(answered) == len(command.request_ids):
            return _brief(max(answered.values(), key=lambda judged: judged.seq))
        world, policy, wall = (
            self._worlds.world(command.world_id),
            self._worlds.policy(command.world_id),
            datetime.now(UTC),
        )
        now, candidates, before = (
            world.now(wall),
            self._worlds.candidates(command.world_id),
            self._worlds.standings(command.world_id),
        )
        verdicts = judge(policy, candidates, now, before, self._correlations, counts=not command.renewal)
        strategies, mode = (
            verdicts.strategies,
            furthest(policy.judged_mode, verdicts.strategies, self._worlds.activations(command.world_id)),
        )
        assert policy.version is not None  # a stored policy has one
        envelope = DecisionEnvelope(
            world_id=command.world_id,
            policy_version=policy.version,
            effective_mode=mode,
            judged_mode=policy.judged_mode,
            reason=summary(strategies),
            as_of=now,
            decided_at=wall,
            ttl=policy.decision_ttl,
            etag=etag_of(command.world_id, policy.version, mode, strategies),
            strategies=strategies,
        )
        basis = DecisionInputs(
            evidence=tuple(candidate.evidence_seq for candidate in candidates),
            before=before,
            after=verdicts.standings,
        )
        return _brief(
            self._worlds.save_decision(command.request_ids, envelope, command.run_id, command.asked_by, basis)
        )

    @activity.defn(no_thread_cancel_exception=True)
    def worlds_to_renew(self, command: RenewalInput) -> RenewalDone:
        """Worlds in which something trades on a decision that is stale, or will be within two rounds of the schedule."""
        return RenewalDone(worlds=tuple(self._worlds.trading_until(datetime.now(UTC) + RENEW_WITHIN)))

    @activity.defn(no_thread_cancel_exception=True)
    def conclude(self, command: ConcludeSubmission) -> Conclusion:
        """Keep how a run ended: the decision that judged it, or why there is none."""
        judged = (
            self._worlds.answered((command.request_id,)).get(command.request_id)
            if command.request_id
            else None
        )
        envelope = judged.envelope if judged else None
        mine = envelope.of(command.strategy_id) if envelope else None
        evidence = self._worlds.evidence(command.run_id)
        activation = next(iter(self._worlds.activations(command.world_id, command.strategy_id)), None)
        outcome = Outcome(
            world_id=command.world_id,
            strategy_id=command.strategy_id,
            run_id=command.run_id,
            status="decided"
            if mine
            else "shadow"
            if evidence and evidence.shadow and not evidence.error_code
            else "failed",
            metrics=evidence.metrics if evidence else {},
            returns_hash=evidence.returns_hash if evidence else "",
            decision=envelope,
            activation=activation,
            error_code=command.error_code or (evidence.error_code if evidence else ""),
            error=command.error or (evidence.error if evidence else ""),
        )
        kept = self._worlds.save_outcome(outcome)
        mine = kept.decision.of(command.strategy_id) if kept.decision else None
        reason = _why(mine) if mine else kept.error
        return Conclusion(
            run_id=command.run_id,
            status=kept.status,
            active=bool(mine and mine.active),
            rank=mine.rank if mine else None,
            weight=mine.weight if mine else 0.0,
            reason=reason,
            metrics=kept.metrics,
        )

    def _run(self, run_id: str) -> RunContextBody:
        run = self._worlds.run(run_id)
        if run is None:
            raise QmtlError(
                "E_STRATEGY_UNKNOWN", f"there is no run {run_id}", "this worker may serve another store"
            )
        return run


class EvaluationActivities:
    """Asks the one workflow that judges a world, by a signal; it is started if it does not run, and signals back when it has judged."""

    def __init__(self, task_queue: str) -> None:
        self._task_queue = task_queue

    @activity.defn
    async def request_evaluation(self, command: RequestEvaluation) -> None:
        await activity.client().start_workflow(
            "EvaluationWorkflow",
            EvaluationInput(store_id=command.store_id, world_id=command.world_id),
            start_signal="request",
            start_signal_args=[command.request],
            **evaluation_options(command.world_id, self._task_queue),
        )


def evaluation_options(world_id: str, task_queue: str) -> dict[str, Any]:
    """How the judgment of a world is started: one at a time. (Any: the keywords of start_workflow.)"""
    return {
        "id": f"evaluation:{world_id}",
        "task_queue": task_queue,
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        "task_timeout": timedelta(seconds=3),
        "static_summary": f"judging world {world_id}",
    }


def _brief(judged: StoredDecision) -> Judgment:
    envelope = judged.envelope
    lines = tuple(
        (
            item.label,
            f"active, rank {item.rank}, weight {item.weight:.3g}" if item.active else "not active",
            _why(item),
        )
        for item in envelope.strategies[:_LINES]
    )
    return Judgment(
        seq=judged.seq,
        etag=envelope.etag,
        reason=envelope.reason,
        policy_version=envelope.policy_version,
        strategies=len(envelope.strategies),
        lines=lines,
    )


def _why(item: StrategyDecision) -> str:
    if item.active and not item.violations:
        return f"passed every gate with a score of {item.score:.4g}"
    return "; ".join(f"{violation.rule}: {violation.detail}" for violation in item.violations[:4])
