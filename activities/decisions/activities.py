"""Activities of EvaluationWorkflow and RenewalWorkflow: judge a world, and list the worlds to renew."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities.artifacts.store import ArtifactStore
from activities.decisions.computing import computing_threads
from activities.decisions.correlation import Correlations
from activities.decisions.judgment import etag_of, furthest, judge, summary
from activities.decisions.sql import SqlDecisionStore
from activities.decisions.store import DecisionInputs, StoredDecision
from activities.fence.store import SqlFenceStore
from activities.messages.evaluation import JudgeCommand, Judgment, RenewalDone, RenewalInput
from activities.messages.stubs import DecisionActivityStubs
from activities.worlds.policies import SqlPolicyStore
from activities.worlds.specs import SqlWorldStore
from qmtl_sdk.contracts.decisions import DecisionEnvelope

# How often the schedule looks for decisions to renew.
RENEW_EVERY = timedelta(minutes=1)

# A decision is renewed when it becomes stale within two rounds of the schedule.
RENEW_WITHIN = 2 * RENEW_EVERY

# Strategies of a decision that the Temporal UI shows.
_LINES = 30


@dataclass(frozen=True)
class DecisionStores:
    """The stores that a judgment reads and writes."""

    worlds: SqlWorldStore
    policies: SqlPolicyStore
    decisions: SqlDecisionStore
    fence: SqlFenceStore
    artifacts: ArtifactStore


class DecisionActivities(DecisionActivityStubs):
    """Judges worlds."""

    def __init__(self, stores: DecisionStores) -> None:
        self._stores = stores
        self._correlations = Correlations(stores.artifacts)
        self._computing = computing_threads()

    @activity.defn(no_thread_cancel_exception=True)
    def judge(self, command: JudgeCommand) -> Judgment:
        """Judge the whole world, and store the decision as the answer to these requests.

        Idempotent: requests that were answered before get the same decision.
        """
        decisions = self._stores.decisions
        answered = decisions.answered(command.request_ids)
        if len(answered) == len(command.request_ids):
            return _summary(max(answered.values(), key=lambda stored: stored.seq))
        envelope, inputs = self._computing.submit(self._judged, command.world_id).result()
        return _summary(
            decisions.save_decision(
                command.request_ids, envelope, command.run_id, command.requested_by, inputs
            )
        )

    def evaluated(self, world_id: str) -> DecisionEnvelope:
        """Return what a judgment would decide now; nothing is written.

        Raises QmtlError: E_WORLD_UNKNOWN, E_POLICY_MISSING.
        """
        return self._judged(world_id)[0]

    def _judged(self, world_id: str) -> tuple[DecisionEnvelope, DecisionInputs]:
        decisions = self._stores.decisions
        world = self._stores.worlds.world(world_id)
        policy = self._stores.policies.policy(world_id)
        assert policy.version is not None  # a stored policy has one
        decided_at = datetime.now(UTC)
        now = world.now(decided_at)
        candidates = self._correlations.checked(policy, decisions.candidates(world_id, now))
        before = decisions.hysteresis_states(world_id)
        result = judge(policy, candidates, now, before, self._correlations.among(candidates))
        activations = self._stores.fence.activations(world_id)
        mode = furthest(policy.judged_mode, result.strategies, activations)
        envelope = DecisionEnvelope(
            world_id=world_id,
            policy_version=policy.version,
            effective_mode=mode,
            judged_mode=policy.judged_mode,
            reason=summary(result.strategies),
            as_of=now,
            decided_at=decided_at,
            ttl=policy.decision_ttl,
            backtest_campaign=policy.gating_policy.campaign.backtest or 0,
            etag=etag_of(world_id, policy.version, mode, result.strategies),
            strategies=result.strategies,
        )
        inputs = DecisionInputs(
            evidence=tuple(candidate.evidence_seq for candidate in candidates),
            newest_bars={item.strategy_id: item.newest_bar for item in candidates if item.newest_bar},
            before=before,
            after=result.states,
        )
        return envelope, inputs

    @activity.defn(no_thread_cancel_exception=True)
    def worlds_to_renew(self, command: RenewalInput) -> RenewalDone:
        """List the worlds that trade on a decision which is stale, or becomes stale within two rounds."""
        until = datetime.now(UTC) + RENEW_WITHIN
        return RenewalDone(worlds=tuple(self._stores.fence.trading_until(until)))


def _summary(stored: StoredDecision) -> Judgment:
    envelope = stored.envelope
    lines = []
    for item in envelope.strategies[:_LINES]:
        result = f"active, rank {item.rank}, weight {item.weight:.3g}" if item.active else "not active"
        lines.append((item.label, result, item.explanation))
    return Judgment(
        seq=stored.seq,
        etag=envelope.etag,
        reason=envelope.reason,
        policy_version=envelope.policy_version,
        strategies=len(envelope.strategies),
        lines=tuple(lines),
    )
