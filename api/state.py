"""What the routes work with, made once when the Gateway starts."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from activities.stores import Stores
from api.auth.keys import KeyRing
from api.auth.limits import SocketLimit
from api.auth.tokens import Tokens
from api.stream import Hub
from qmtl_sdk.runtime.config import Settings
from temporal.applies import ApplyService
from temporal.promotions import PromotionService
from temporal.submissions import SubmissionService


@dataclass(frozen=True)
class GatewayState:
    config: Settings
    stores: Stores
    submissions: SubmissionService
    applies: ApplyService
    promotions: PromotionService
    keys: KeyRing
    tokens: Tokens
    hub: Hub
    sockets: SocketLimit
    revoked: set[str] = field(default_factory=set)
    """Ids of tokens that were taken back, as of the last look."""

    def ui_link(self, workflow_id: str) -> str:
        """The workflow's page in the Temporal UI; empty where none is known."""
        temporal = self.config.temporal
        return (
            f"{temporal.ui_url}/namespaces/{temporal.namespace}/workflows/{workflow_id}"
            if temporal.ui_url
            else ""
        )


async def _state(
    request: Request,
) -> GatewayState:  # async: FastAPI gives each plain function a thread, and every request waited for it
    state: GatewayState = request.app.state.gateway
    return state


State = Annotated[GatewayState, Depends(_state)]
