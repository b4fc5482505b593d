"""Who sends orders: an order counts only from the actor who opened its session, with the session's secret.

An order without this proof is refused as `no_session` before any rule is checked. It leaves no row and
counts for no circuit breaker, so that nobody can use up another's order ids or halt another's world.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from activities.fence.rules import Session
from activities.sessions.holder import SessionCaller
from qmtl_sdk.contracts.orders import OrderRequest


@dataclass(frozen=True)
class OrderCaller:
    """The subject of the caller's token, and by session_id the secrets that came with the request.

    With a `token_id`, the fence reads in its transaction whether that token has been revoked.
    """

    subject: str
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    token_id: str = ""

    def may_send(self, order: OrderRequest, sessions: Mapping[str, Session]) -> bool:
        """Return whether the order's session is the caller's, and of the order's world and strategy."""
        session = sessions.get(order.session_id)
        return (
            session is not None
            and (session.world_id, session.strategy_id) == (order.world_id, order.strategy_id)
            and self.holds(order.session_id, session.actor, session.secret_hash)
        )

    def holds(self, session_id: str, actor: str, secret_hash: str) -> bool:
        """Return whether the caller opened the session, and sent its secret."""
        caller = SessionCaller(self.subject, self.secrets.get(session_id, ""))
        return caller.holds(actor, secret_hash)
