"""What the services need of WorldService's state."""

from typing import Protocol

from activities.worlds.decision import Candidate
from qmtl_sdk.contracts.domains import ComputeContext
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.submission import Outcome, StreamBinding
from qmtl_sdk.contracts.worlds import ActivationEnvelope, DecisionEnvelope, Execution, StrategyDecision, UtcTime, World, WorldSpec


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


class Judged(Model):
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

    def save_evidence(self, evidence: EvidenceBody) -> EvidenceBody:
        """Done once for a run; asked again, the first answer."""

    def evidence(self, run_id: str) -> EvidenceBody | None: ...

    def candidates(self, world_id: str) -> tuple[Candidate, ...]:
        """The newest evidence of every strategy of a world that has any."""

    def save_decision(self, request_ids: tuple[str, ...], envelope: DecisionEnvelope, run_id: str, asked_by: str = "") -> Judged:
        """Keep the decision and the activations that follow from it, as the answer to these requests. `asked_by`: the person who asked for it, if one did."""

    def answered(self, request_ids: tuple[str, ...]) -> dict[str, Judged]:
        """Which requests have been answered, and by which decision."""

    def decision(self, world_id: str) -> DecisionEnvelope | None: ...

    def decisions(self, world_id: str, limit: int) -> list[DecisionEnvelope]: ...

    def activations(self, world_id: str, strategy_id: str | None = None) -> list[ActivationEnvelope]: ...

    def activation_hash(self, world_id: str) -> tuple[int, str]:
        """How often the world's activation has changed, and the hash of what it is."""

    def save_outcome(self, outcome: Outcome) -> Outcome:
        """How a run ended. Done once for a run."""

    def outcome(self, run_id: str) -> Outcome | None: ...


def mode_of(decision: StrategyDecision, envelope: DecisionEnvelope) -> str:
    """What a decision lets one strategy do: one that is not active goes no further than validation."""
    return envelope.effective_mode if decision.active else "validate"


def activation_of(decision: StrategyDecision, envelope: DecisionEnvelope, run_id: str, etag: str, sequence: int) -> ActivationEnvelope:
    """The activation that a decision calls for."""
    return ActivationEnvelope(
        world_id=envelope.world_id,
        strategy_id=decision.strategy_id,
        active=decision.active,
        weight=decision.weight,
        effective_mode=mode_of(decision, envelope),
        etag=etag,
        run_id=run_id,
        ts=envelope.decided_at,
        sequence=sequence,
    )
