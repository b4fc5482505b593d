"""What routes work with; built once when the Gateway starts."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from activities.settings import Settings
from activities.stores import Stores
from api.answers import Answers
from api.auth.keys import KeyRing
from api.auth.limits import SocketLimit
from api.auth.tokens import Tokens
from api.health import HealthCheck
from api.loops import LoopSupervisor
from api.stream import Hub
from temporal.applies import ApplyService
from temporal.promotions import PromotionService
from temporal.submissions import SubmissionService


@dataclass(frozen=True)
class GatewayState:
    """The stores, services and limits of one Gateway."""

    config: Settings
    stores: Stores
    submissions: SubmissionService
    applies: ApplyService
    promotions: PromotionService
    keys: KeyRing
    tokens: Tokens
    hub: Hub
    sockets: SocketLimit
    answers: Answers
    supervisor: LoopSupervisor
    health: HealthCheck
    revoked: set[str] = field(default_factory=set)
    """Ids of revoked tokens, as last read from the register."""

    def ui_link(self, workflow_id: str) -> str:
        """Return the workflow's page in the Temporal UI; empty where no UI is configured."""
        temporal = self.config.temporal
        if not temporal.ui_url:
            return ""
        return f"{temporal.ui_url}/namespaces/{temporal.namespace}/workflows/{workflow_id}"


async def _state(request: Request) -> GatewayState:
    # Async although it awaits nothing: each request would wait for the thread of a plain function.
    state: GatewayState = request.app.state.gateway
    return state


State = Annotated[GatewayState, Depends(_state)]
