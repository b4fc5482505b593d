"""What the services need of WorldService's state."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from activities.worlds.candidate import Candidate, HysteresisState
from qmtl_sdk.contracts.applies import rank_of
from qmtl_sdk.contracts.domains import ComputeContext
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.submission import Outcome, StreamBinding
from qmtl_sdk.contracts.worlds import (
    ActivationEnvelope,
    DecisionEnvelope,
    Execution,
    StrategyDecision,
    UtcTime,
    World,
    WorldSpec,
)


class RunContextBody(Model):
    """What the services decided about one run of a submission."""

    run_id: str
    world_id: str
    strategy_id: str
    name: str
    context: ComputeContext
    bindings: tuple[StreamBinding, ...]
    execution: Execution
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None


class EvidenceBody(Model):
    """What a run came to: metrics with their artifact, or the reason why there are none."""

    run_id: str
    world_id: str
    strategy_id: str
    metrics: dict[str, float | None] = {}
    returns_hash: str = ""
    dataset_fingerprint: str = ""
    as_of: str | None = None
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None
    precheck: dict[str, object] = {}
    error_code: str = ""
    error: str = ""
    shadow: bool = False
    sectors: tuple[str, ...] = ()


class DecisionInputs(Model):
    """What a decision was made of: the numbers of the evidence, what hysteresis remembered before, and what it remembers `after`."""

    evidence: tuple[int, ...] = ()
    before: dict[str, HysteresisState] = {}
    after: dict[str, HysteresisState] = {}


class NodeValidation(Model):
    """A node's place in a world's view of the graph, and the key of what was found of it."""

    node_id: str
    execution_domain: str
    eval_key: str


class StepDone(Model):
    """A step of an apply was done."""


class GateChange(StepDone):
    """The epoch and the sequence that a freeze or unfreeze was told under, and when."""

    epoch: int
    sequence: int
    at: UtcTime


class StoredDecision(Model):
    """The stored decision's number and content."""

    seq: int
    envelope: DecisionEnvelope


class WorldStore(Protocol):
    def create(self, spec: WorldSpec, policy: Policy | None, actor: str) -> World:
        """Raises QmtlError: E_WORLD_EXISTS where another world has that name; the same one again is found as it is."""

    def world(self, world_id: str) -> World:
        """Raises QmtlError (E_WORLD_UNKNOWN)."""

    def worlds(self) -> list[World]: ...

    def add_policy(self, world_id: str, policy: Policy, actor: str) -> Policy:
        """A new version, which becomes the default. Raises QmtlError: E_POLICY_VERSION where the policy names a version that is not the next."""

    def policy(self, world_id: str, version: int | None = None) -> Policy:
        """Raises QmtlError: E_POLICY_MISSING, E_POLICY_UNKNOWN."""

    def policies(self, world_id: str) -> list[Policy]: ...

    def begin_run(self, run: RunContextBody) -> RunContextBody:
        """Bind the strategy to the world and keep the run's context. Done once for a run; asked again, the same answer."""

    def run(self, run_id: str) -> RunContextBody | None: ...

    def newest_run(self, strategy_id: str, world_id: str | None) -> RunContextBody | None: ...

    def save_evidence(
        self, evidence: EvidenceBody, validations: Sequence[NodeValidation] = ()
    ) -> EvidenceBody:
        """The evidence, and what it says of the strategy's nodes in this world. Done once for a run; asked again, the first answer."""

    def evidence(self, run_id: str) -> EvidenceBody | None: ...

    def candidates(self, world_id: str) -> tuple[Candidate, ...]:
        """The newest evidence of every strategy of a world that has any."""

    def save_decision(
        self,
        request_ids: tuple[str, ...],
        envelope: DecisionEnvelope,
        run_id: str,
        asked_by: str = "",
        basis: DecisionInputs | None = None,
    ) -> StoredDecision:
        """Keep the decision, what it was made of, and the activations that follow from it, as the answer to these requests. `asked_by`: the person who asked, if one did."""

    def standings(self, world_id: str) -> dict[str, HysteresisState]:
        """What hysteresis remembers, by strategy."""

    def bases(
        self, world_id: str, since: datetime | None = None, limit: int = 1000
    ) -> list[tuple[DecisionEnvelope, DecisionInputs, tuple[Candidate, ...]]]:
        """The newest decisions, oldest first, with what each was made of."""

    def trading_until(self, moment: datetime) -> list[str]:
        """Worlds in which something trades on a decision that is fresh no longer than `moment`."""

    def answered(self, request_ids: tuple[str, ...]) -> dict[str, StoredDecision]:
        """Which requests have been answered, and by which decision."""

    def decision(self, world_id: str) -> DecisionEnvelope | None: ...

    def decisions(self, world_id: str, limit: int) -> list[DecisionEnvelope]: ...

    def activations(self, world_id: str, strategy_id: str | None = None) -> list[ActivationEnvelope]: ...

    def activation_hash(self, world_id: str) -> tuple[int, str]:
        """How often the world's activation has changed, and the hash of what it is."""

    def save_outcome(self, outcome: Outcome) -> Outcome:
        """How a run ended. Done once for a run."""

    def outcome(self, run_id: str) -> Outcome | None: ...


def stage_after(
    decision: StrategyDecision, envelope: DecisionEnvelope, before: ActivationEnvelope | None
) -> tuple[str, float]:
    """The mode and weight that a decision gives a strategy by itself. It may switch off at once; up it goes no further than a judgment alone may (`judged_mode`), and what an
    apply has brought further keeps its stage and its weight until another apply."""
    if not decision.active:
        return "validate", 0.0
    if (
        before is not None
        and before.active
        and rank_of(before.effective_mode) > rank_of(envelope.judged_mode)
    ):
        return before.effective_mode or "validate", before.weight
    return envelope.judged_mode, decision.weight


def furthest(
    judged_mode: str, strategies: Sequence[StrategyDecision], activations: Sequence[ActivationEnvelope]
) -> str:
    """The furthest stage of the strategies that a decision leaves active."""
    active = {item.strategy_id for item in strategies if item.active}
    modes = [item.effective_mode for item in activations if item.active and item.strategy_id in active]
    return max([judged_mode, *(mode for mode in modes if mode)], key=rank_of)


def activation_of(
    decision: StrategyDecision, envelope: DecisionEnvelope, run_id: str, etag: str, mode: str, weight: float
) -> ActivationEnvelope:
    """The activation that a decision calls for. Its sequence is given when it is stored."""
    return ActivationEnvelope(
        world_id=envelope.world_id,
        strategy_id=decision.strategy_id,
        side=decision.side,
        active=decision.active,
        weight=weight,
        effective_mode=mode,
        etag=etag,
        run_id=run_id,
        ts=envelope.decided_at,
    )
