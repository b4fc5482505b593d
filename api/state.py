"""What the routes work with, made once when the Gateway starts."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from qmtl_sdk.runtime.config import Settings
from temporal.submissions import Submissions
from temporal.worker import Stores

# Who acts, as the audit trail has it: the embedded Gateway listens on loopback and knows one person.
LOCAL_ACTOR = "local"


@dataclass(frozen=True)
class GatewayState:
    config: Settings
    stores: Stores
    submissions: Submissions

    def ui_link(self, workflow_id: str) -> str:
        """The workflow's page in the Temporal UI; empty where none is known."""
        temporal = self.config.temporal
        return f"{temporal.ui_url}/namespaces/{temporal.namespace}/workflows/{workflow_id}" if temporal.ui_url else ""


def _state(request: Request) -> GatewayState:
    state: GatewayState = request.app.state.gateway
    return state


State = Annotated[GatewayState, Depends(_state)]
