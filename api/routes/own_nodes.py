"""Which nodes a runner may report about."""

from collections.abc import Collection

from activities.stores import Stores
from qmtl_sdk.contracts.errors import QmtlError


def require_own_nodes(stores: Stores, strategy_id: str, node_ids: Collection[str]) -> None:
    """Require that nodes are of the strategy, so that nobody can report ever new ones.

    Raises QmtlError (E_BODY_INVALID).
    """
    if not node_ids:
        return
    others = set(node_ids) - stores.graph.node_ids(strategy_id)
    if others:
        raise QmtlError(
            "E_BODY_INVALID",
            f"cross_context_hits: the strategy has no node {min(others)[:80]!r}",
            "report nodes of the strategy only",
        )
