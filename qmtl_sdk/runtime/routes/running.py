"""Orders, sessions, queues and event subscriptions of running strategies."""

from collections.abc import Sequence

from pydantic import TypeAdapter

from qmtl_sdk.contracts.orders import Order, OrderBatch, OrderRecord, OrderVerdict, OrderVerdicts
from qmtl_sdk.contracts.sessions import (
    QueueAppend,
    QueueAppended,
    QueueInfo,
    QueueMessage,
    QueueRead,
    SessionAck,
    SessionAcked,
    SessionGrant,
    SessionHeartbeat,
    SessionInfo,
    SessionLease,
    SessionOpen,
)
from qmtl_sdk.contracts.stream import Subscribe, Subscription
from qmtl_sdk.runtime.routes.transport import Transport


class RunningRoutes(Transport):
    """Orders, sessions, queues and event subscriptions of running strategies."""

    def publish_orders(self, orders: Sequence[Order], patience_s: float | None = None) -> list[OrderVerdict]:
        """Publish orders; return one verdict each. Safe to repeat: an order id gets one verdict."""
        return list(
            OrderVerdicts.model_validate(
                self._call("POST", "/orders", OrderBatch(orders=tuple(orders)), patience_s=patience_s)
            ).verdicts
        )

    def orders(
        self, world_id: str, after: int = 0, limit: int = 100, reason: str | None = None
    ) -> list[OrderRecord]:
        params = {
            "world_id": world_id,
            "after": after,
            "limit": limit,
            **({"reason": reason} if reason else {}),
        }
        return TypeAdapter(list[OrderRecord]).validate_python(self._call("GET", "/orders", params=params))

    def open_session(self, request: SessionOpen, patience_s: float | None = None) -> SessionGrant:
        return SessionGrant.model_validate(self._call("POST", "/sessions", request, patience_s=patience_s))

    def session_heartbeat(self, session_id: str, report: SessionHeartbeat) -> SessionLease:
        """Send one heartbeat without retrying: the next one follows soon."""
        return SessionLease.model_validate(
            self._call("POST", f"/sessions/{session_id}/heartbeat", report, patience_s=0.0, timeout=10.0)
        )

    def end_session(self, session_id: str, reason: str, patience_s: float | None = None) -> SessionInfo:
        return SessionInfo.model_validate(
            self._call("DELETE", f"/sessions/{session_id}", params={"reason": reason}, patience_s=patience_s)
        )

    def ack_session(self, session_id: str, sequence: int) -> bool:
        """Acknowledge a freeze or unfreeze; return whether an apply was still waiting for it."""
        return SessionAcked.model_validate(
            self._call("POST", f"/sessions/{session_id}/ack", SessionAck(sequence=sequence), patience_s=2.0)
        ).in_time

    def sessions(self, world_id: str | None = None, ended: bool = False) -> list[SessionInfo]:
        params = {"ended": ended, **({"world_id": world_id} if world_id else {})}
        return TypeAdapter(list[SessionInfo]).validate_python(self._call("GET", "/sessions", params=params))

    def queues_by_tag(
        self, tags: Sequence[str], interval: int, match_mode: str, world_id: str, execution_domain: str
    ) -> list[QueueInfo]:
        params = {
            "tags": ",".join(tags),
            "interval": interval,
            "match_mode": match_mode,
            "world_id": world_id,
            "execution_domain": execution_domain,
        }
        return TypeAdapter(list[QueueInfo]).validate_python(
            self._call("GET", "/queues/by_tag", params=params)
        )

    def queue_append(self, topic: str, messages: Sequence[QueueMessage]) -> int:
        return QueueAppended.model_validate(
            self._call("POST", f"/queues/{topic}/messages", QueueAppend(messages=tuple(messages)))
        ).added

    def queue_read(self, topic: str, after: int, limit: int = 1000, last: bool = False) -> QueueRead:
        return QueueRead.model_validate(
            self._call(
                "GET", f"/queues/{topic}/messages", params={"after": after, "limit": limit, "last": last}
            )
        )

    def subscribe(self, request: Subscribe, patience_s: float | None = None) -> Subscription:
        return Subscription.model_validate(
            self._call("POST", "/events/subscribe", request, patience_s=patience_s)
        )

    def activation_hash(self, world_id: str) -> str:
        return str(self._call("GET", f"/worlds/{world_id}/activation/state_hash")["state_hash"])
