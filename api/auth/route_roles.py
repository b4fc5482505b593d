"""The table of routes and the role that each requires; docs and tests read it.

No route may be missing. Where its path has a `world_id`, the role is required in that world; otherwise in
some world, and the route checks which (`Caller.require_role`).
"""

from dataclasses import dataclass

from qmtl_sdk.contracts.access import Role


@dataclass(frozen=True)
class Access:
    """What a route requires. `role` None: no token. `world`: where the request names the role's world.

    `urgent`: it has a rate limit of its own, which no other requests of the caller use up. `costly`: it takes
    much processor time, and has a rate limit far below the others' as well.
    """

    role: Role | None
    world: str = "any"
    urgent: bool = False
    costly: bool = False


_R = Role.READER
_A = Role.AUTHOR
_OP = Role.OPERATOR
_OWN = Role.OWNER
ROUTES: dict[tuple[str, str], Access] = {
    ("POST", "/strategies"): Access(_A, "body"),
    ("POST", "/strategies/dry-run"): Access(_A, "body"),
    ("GET", "/strategies/{strategy_id}/status"): Access(_R, "run"),
    ("POST", "/leases/{lease_id}/heartbeat"): Access(_A, "run"),
    ("POST", "/leases/{lease_id}/complete"): Access(_A, "run"),
    ("POST", "/leases/{lease_id}/fail"): Access(_A, "run"),
    ("PUT", "/artifacts/{content_hash}"): Access(_A),
    ("GET", "/artifacts/{content_hash}"): Access(_R),
    ("POST", "/worlds"): Access(_OP, "body"),
    ("GET", "/worlds"): Access(_R),
    ("GET", "/worlds/{world_id}"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/policies"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/policies"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/policies/{version}"): Access(_R, "path"),
    ("PATCH", "/worlds/{world_id}"): Access(_OP, "path"),
    ("DELETE", "/worlds/{world_id}"): Access(_OP, "path"),
    ("POST", "/worlds/{world_id}/evaluate"): Access(_R, "path", costly=True),
    ("POST", "/worlds/{world_id}/policies/{version}/set-default"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/policies/{version}/diff"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/policies/replay"): Access(_R, "path", costly=True),
    ("GET", "/worlds/{world_id}/explain/{strategy_id}"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/bindings"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/nodes"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/fingerprints"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/apply"): Access(_OP, "path"),
    ("POST", "/worlds/{world_id}/apply/plan"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/applies"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/applies/{run_id}"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/applies/{run_id}/approve"): Access(_A, "path"),
    ("POST", "/worlds/{world_id}/applies/{run_id}/reject"): Access(_A, "path"),
    ("POST", "/worlds/{world_id}/applies/{run_id}/abort"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/changes"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/changes/{change_id}/approve"): Access(_A, "path"),
    ("POST", "/worlds/{world_id}/changes/{change_id}/reject"): Access(_A, "path"),
    ("POST", "/worlds/{world_id}/promotions"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/promotions"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/promotions/{strategy_id}"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/promotions/{strategy_id}/end"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/fence"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/halt"): Access(_OP, "path", urgent=True),
    ("POST", "/halt"): Access(_OP, urgent=True),
    ("POST", "/worlds/{world_id}/orders/cancel"): Access(_OP, "path"),
    ("POST", "/worlds/{world_id}/flatten"): Access(_OP, "path"),
    ("POST", "/flatten"): Access(_OP),
    ("POST", "/worlds/{world_id}/resume"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/edges/overrides"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/edges/overrides"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/audit"): Access(_R, "path"),
    ("GET", "/audit"): Access(_OWN),
    ("POST", "/fills"): Access(_OP, "body"),
    ("GET", "/allocations"): Access(_R),
    ("POST", "/allocations"): Access(_OP, "body"),
    ("POST", "/rebalancing/plan"): Access(_R, "body", costly=True),
    ("POST", "/rebalancing/apply"): Access(_OP, "body"),
    ("POST", "/rebalancing/execute"): Access(_R, "body", costly=True),
    ("GET", "/rebalancing/runs"): Access(_R),
    ("GET", "/rebalancing/runs/{run_id}"): Access(_R),
    ("POST", "/rebalancing/runs/{run_id}/approve"): Access(_A),
    ("POST", "/rebalancing/runs/{run_id}/reject"): Access(_A),
    ("POST", "/rebalancing/runs/{run_id}/abort"): Access(_OP),
    ("GET", "/rebalancing/schedules"): Access(_R),
    ("GET", "/rebalancing/schedules/{name}"): Access(_R),
    ("PUT", "/rebalancing/schedules/{name}"): Access(_OP, "body"),
    ("DELETE", "/rebalancing/schedules/{name}"): Access(_OP),
    ("GET", "/worlds/{world_id}/positions"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/positions/summary"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/report"): Access(_R, "path", costly=True),
    ("GET", "/worlds/{world_id}/ledger"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/reconciliation"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/ledger"): Access(_OP, "path"),
    ("POST", "/worlds/{world_id}/ledger/verify"): Access(_R, "path", costly=True),
    ("POST", "/worlds/{world_id}/ledger/rebuild"): Access(_OP, "path", costly=True),
    ("POST", "/orders"): Access(_A, "body"),
    ("POST", "/orders/withheld"): Access(_A, "body"),
    ("POST", "/targets"): Access(_A, "body"),
    ("GET", "/orders"): Access(_R, "query"),
    ("GET", "/orders/changes"): Access(_R, "query"),
    ("POST", "/sessions/{session_id}/ack"): Access(_A, "session"),
    ("POST", "/worlds/{world_id}/decide"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/decisions"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/activation"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/activation/state_hash"): Access(_R, "path"),
    ("POST", "/sessions"): Access(_A, "body"),
    ("GET", "/sessions"): Access(_R),
    ("POST", "/sessions/{session_id}/heartbeat"): Access(_A, "session"),
    ("DELETE", "/sessions/{session_id}"): Access(_A, "session"),
    ("GET", "/queues/by_tag"): Access(_R, "query"),
    ("GET", "/queues/{topic}/messages"): Access(_A, "queue"),
    ("POST", "/queues/{topic}/messages"): Access(_A, "queue"),
    ("POST", "/events/subscribe"): Access(_R, "body"),
    ("GET", "/events/poll"): Access(None, "stream token"),
    ("GET", "/events/dead-letters"): Access(_OP),
    ("POST", "/events/dead-letters/{number}/retry"): Access(_OP),
    ("DELETE", "/events/dead-letters/{number}"): Access(_OP),
    ("GET", "/events/schema"): Access(None),
    ("GET", "/events/jwks"): Access(None),
    ("POST", "/principals"): Access(_OWN),
    ("GET", "/principals"): Access(_OP),
    ("POST", "/principals/{name}/disable"): Access(_OWN),
    ("POST", "/tokens"): Access(_OP),
    ("GET", "/tokens"): Access(_OP),
    ("DELETE", "/tokens/{token_id}"): Access(_OP),
    ("POST", "/tokens/rotate"): Access(_OWN),
    ("GET", "/status"): Access(_R),
    ("GET", "/health"): Access(None),
    ("GET", "/metrics"): Access(None),
}
