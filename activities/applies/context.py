"""The state of a world that planner, promotions and explanations work on."""

from datetime import datetime

from activities.decisions.candidate import Candidate
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.plans import StrategyAllocation, plan_etag
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.worlds import World


class Snapshot(Model):
    """The state that a freeze found, which a rollback or a refused switch restores."""

    allocations: dict[str, StrategyAllocation] = {}
    live_edge: bool = False
    fingerprint: str = ""


class PlanningContext(Model):
    """The world as the planner reads it: one consistent view."""

    world: World
    policy: Policy
    decision: DecisionEnvelope | None
    activations: tuple[ActivationEnvelope, ...]
    evidence: dict[str, Candidate]
    live_edge: bool
    now: datetime

    @property
    def etag(self) -> str:
        return plan_etag(
            [(item.strategy_id, item.etag) for item in self.activations],
            self.world.pinned_fingerprint,
            self.live_edge,
            self.policy.version,
        )

    def allocation(self, strategy_id: str) -> StrategyAllocation:
        found = next((item for item in self.activations if item.strategy_id == strategy_id), None)
        return allocation_of(found) if found else StrategyAllocation()

    def stage_since(self, strategy_id: str) -> datetime | None:
        return next((item.stage_since for item in self.activations if item.strategy_id == strategy_id), None)


def allocation_of(activation: ActivationEnvelope) -> StrategyAllocation:
    """Convert an activation."""
    return StrategyAllocation(
        active=activation.active, mode=activation.effective_mode or "validate", weight=activation.weight
    )
