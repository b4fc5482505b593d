"""What the services need of the global graph."""

from typing import Protocol

from activities.graph.diff import DiffPlan
from activities.messages.submission import DiffResult
from qmtl_sdk.contracts.dag import Dag


class GraphStore(Protocol):
    def diff(self, run_id: str, world_id: str, domain: str, name: str, dag: Dag) -> DiffResult:
        """Add what is new: nodes, edges, queues, the strategy, its sentinel. One transaction, done once for a run; asked again, the same answer."""

    def plan(self, world_id: str, domain: str, dag: Dag) -> DiffPlan:
        """What `diff` would do. Nothing is written."""

    def ensure_queues(self, world_id: str, domain: str, dag: Dag, actor: str) -> dict[str, str]:
        """The topics of a known strategy's nodes in a domain, made where there are none yet; by NodeID."""

    def dag(self, strategy_id: str) -> Dag:
        """Raises QmtlError (E_STRATEGY_UNKNOWN)."""
