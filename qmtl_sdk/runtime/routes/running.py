"""Orders, sessions, queues and event subscriptions of running strategies."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.flattening import FlattenEvery, FlattenRequest, FlattenResult, FlattenResults
from qmtl_sdk.contracts.order_list import ChangesOfWorld, OrderChanges, OrderFilter
from qmtl_sdk.contracts.orders import (
    CancelRequest,
    CancelResult,
    Order,
    OrderBatch,
    OrderRecord,
    OrderVerdict,
    OrderVerdicts,
    WithheldBatch,
    WithheldOrder,
    WithheldRecorded,
)
from qmtl_sdk.contracts.sessions import (
    SESSION_HEADER,
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
from qmtl_sdk.contracts.targets import Target, TargetBatch, TargetVerdict, TargetVerdicts
from qmtl_sdk.runtime.routes.transport import Transport


@dataclass(frozen=True)
class SessionKey:
    """What acts in a session: its id, and the secret of its grant."""

    session_id: str
    secret: str = field(default="", repr=False)

    @classmethod
    def of(cls, grant: SessionGrant) -> "SessionKey":
        """Return the key of a granted session."""
        return cls(grant.session_id, grant.secret)

    @property
    def headers(self) -> dict[str, str]:
        """The header that carries the secret."""
        return {SESSION_HEADER: self.secret} if self.secret else {}


class RunningRoutes(Transport):
    """Orders, sessions, queues and event subscriptions of running strategies."""

    def publish_orders(
        self, orders: Sequence[Order], session: SessionKey, patience_s: float | None = None
    ) -> list[OrderVerdict]:
        """Publish orders of one session; return one verdict each.

        Safe to repeat: an order id gets one verdict.
        """
        batch = OrderBatch(orders=tuple(orders))
        found = self._call("POST", "/orders", batch, headers=session.headers, patience_s=patience_s)
        return list(OrderVerdicts.model_validate(found).verdicts)

    def publish_targets(
        self, targets: Sequence[Target], session: SessionKey, patience_s: float | None = None
    ) -> list[TargetVerdict]:
        """Publish targets of one session; return one verdict each.

        Safe to repeat: what is there already is not ordered again.
        """
        batch = TargetBatch(targets=tuple(targets))
        found = self._call("POST", "/targets", batch, headers=session.headers, patience_s=patience_s)
        return list(TargetVerdicts.model_validate(found).verdicts)

    def report_withheld(self, orders: Sequence[WithheldOrder], session: SessionKey) -> int:
        """Report orders of one session that are not sent; return how many were new. Safe to repeat."""
        batch = WithheldBatch(orders=tuple(orders))
        found = self._call("POST", "/orders/withheld", batch, headers=session.headers, patience_s=0.0)
        return WithheldRecorded.model_validate(found).recorded

    def orders(
        self, world_id: str, after: int = 0, limit: int = 100, reason: str | None = None
    ) -> list[OrderRecord]:
        """List orders of a world after a number of the order log, oldest first."""
        wanted = {"after": after, "limit": limit, "reason": reason or None}
        return self.list_orders(world_id, validated(OrderFilter, wanted, "E_BODY_INVALID", "list of orders"))

    def list_orders(self, world_id: str, wanted: OrderFilter) -> list[OrderRecord]:
        """List those orders of a world that a filter selects, oldest first."""
        params = {"world_id": world_id, **wanted.model_dump(mode="json", exclude_defaults=True)}
        return TypeAdapter(list[OrderRecord]).validate_python(self._call("GET", "/orders", params=params))

    def order_changes(self, wanted: ChangesOfWorld) -> OrderChanges:
        """List orders that are new or have changed after a number of the order log, without retrying."""
        params = wanted.model_dump(mode="json", exclude_defaults=True)
        found = self._call("GET", "/orders/changes", params=params, patience_s=0.0)
        return OrderChanges.model_validate(found)

    def cancel_orders(self, world_id: str, request: CancelRequest) -> CancelResult:
        """Cancel open orders of a world; safe to repeat."""
        return CancelResult.model_validate(self._call("POST", f"/worlds/{world_id}/orders/cancel", request))

    def flatten(self, world_id: str, request: FlattenRequest) -> FlattenResult:
        """Close what strategies of a world hold. Repeated under its id, it only says what remains."""
        return FlattenResult.model_validate(self._call("POST", f"/worlds/{world_id}/flatten", request))

    def flatten_all(self, request: FlattenEvery) -> FlattenResults:
        """Do the same in every world in which the token is an operator's."""
        return FlattenResults.model_validate(self._call("POST", "/flatten", request))

    def open_session(self, request: SessionOpen, patience_s: float | None = None) -> SessionGrant:
        return SessionGrant.model_validate(self._call("POST", "/sessions", request, patience_s=patience_s))

    def session_heartbeat(self, session: SessionKey, report: SessionHeartbeat) -> SessionLease:
        """Send one heartbeat without retrying: the next one follows soon."""
        path, headers = f"/sessions/{session.session_id}/heartbeat", session.headers
        return SessionLease.model_validate(
            self._call("POST", path, report, headers=headers, patience_s=0.0, timeout=10.0)
        )

    def end_session(
        self, session: SessionKey, reason: str, patience_s: float | None = None, flatten: str | None = None
    ) -> SessionInfo:
        """End a session. An operator may end any session, and needs no secret.

        `flatten`: close what its strategy holds too, as a request to flatten of this id; for operators.
        """
        path = f"/sessions/{session.session_id}"
        params = {"reason": reason, **({"flatten": flatten} if flatten else {})}
        return SessionInfo.model_validate(
            self._call("DELETE", path, params=params, headers=session.headers, patience_s=patience_s)
        )

    def ack_session(self, session: SessionKey, sequence: int) -> bool:
        """Acknowledge a freeze or unfreeze; return whether an apply was still waiting for it."""
        path, body = f"/sessions/{session.session_id}/ack", SessionAck(sequence=sequence)
        return SessionAcked.model_validate(
            self._call("POST", path, body, headers=session.headers, patience_s=2.0)
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

    def queue_append(self, topic: str, messages: Sequence[QueueMessage], session: SessionKey) -> int:
        path, body = f"/queues/{topic}/messages", QueueAppend(messages=tuple(messages))
        params = {"session_id": session.session_id}
        return QueueAppended.model_validate(
            self._call("POST", path, body, params=params, headers=session.headers)
        ).added

    def queue_read(
        self,
        topic: str,
        after: int,
        limit: int = 1000,
        last: bool = False,
        session: SessionKey = SessionKey(""),
    ) -> QueueRead:
        """Read a queue, as a session of its world and domain or as an operator."""
        params = {"after": after, "limit": limit, "last": last, "session_id": session.session_id}
        path = f"/queues/{topic}/messages"
        return QueueRead.model_validate(self._call("GET", path, params=params, headers=session.headers))

    def subscribe(self, request: Subscribe, patience_s: float | None = None) -> Subscription:
        return Subscription.model_validate(
            self._call("POST", "/events/subscribe", request, patience_s=patience_s)
        )

    def activation_hash(self, world_id: str) -> str:
        return str(self._call("GET", f"/worlds/{world_id}/activation/state_hash")["state_hash"])
