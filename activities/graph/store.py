"""The interface of the global graph."""

from typing import Protocol

from activities.graph.diff import DiffPlan
from activities.messages.submission import DiffResult, RunContextBody
from activities.storage.transactions import Transaction
from qmtl_sdk.contracts.dag import Dag


class GraphStore(Protocol):
    """Nodes, edges, strategies and queues."""

    def diff(self, tx: Transaction, run: RunContextBody, dag: Dag) -> DiffResult:
        """Add what is new in a DAG: nodes, edges, queues, the strategy, its sentinel.

        Idempotent: a repeated diff of a run returns the first result.
        """

    def plan(self, world_id: str, domain: str, dag: Dag) -> DiffPlan:
        """Plan what `diff` would add, without writing."""

    def ensure_queues(self, world_id: str, domain: str, dag: Dag, actor: str) -> dict[str, str]:
        """Create the missing queues of a stored strategy in a domain. Returns NodeID → topic."""

    def node_ids(self, strategy_id: str) -> frozenset[str]:
        """Return the nodes of a strategy. Raises QmtlError (E_STRATEGY_UNKNOWN)."""

    def dag(self, strategy_id: str) -> Dag:
        """Read a strategy's DAG. Raises QmtlError (E_STRATEGY_UNKNOWN)."""
