"""The state of a world that planner, promotions and explanations work on."""

from datetime import datetime

from activities.decisions.candidate import Candidate
from activities.sessions.time_open import TimeOpen
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.plans import StrategyAllocation
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.worlds import World


class Snapshot(Model):
    """The state that a freeze found, which a rollback or a refused switch restores.

    `edge_closings`: how often an operator had closed the edge to live by then. One that was closed since
    stays closed.
    """

    allocations: dict[str, StrategyAllocation] = {}
    live_edge: bool = False
    edge_closings: int = 0
    fingerprint: str = ""


# The domains in which strategies send orders.
_TRADING = (Domain.DRYRUN, Domain.LIVE)


class PlanningContext(Model):
    """The world as the planner reads it: one consistent view.

    `ran`: for how long each strategy has run in its stage, where the policy asks for it.
    """

    world: World
    policy: Policy
    decision: DecisionEnvelope | None
    activations: tuple[ActivationEnvelope, ...]
    evidence: dict[str, Candidate]
    live_edge: bool
    edge_closings: int
    now: datetime
    ran: dict[str, TimeOpen] = {}

    @property
    def world_etag(self) -> str:
        """The hash of the state of the world that a plan changes: not of what it rests on.

        Of strategies, only those that trade count: the weights of the others change with each that comes, and
        no author may hold up the applies of a world by submitting.
        """
        trading = [item for item in self.activations if item.active and item.execution_domain in _TRADING]
        world = {
            "activations": {item.strategy_id: item.etag for item in trading},
            "fingerprint": self.world.pinned_fingerprint,
            "live_edge": self.live_edge,
            "edge_closings": self.edge_closings,
            "policy": self.policy.version,
        }
        return hash_of(world)

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
