"""What routes work with; built once when the Gateway starts."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from activities.settings import Settings
from activities.stores import Stores
from api.acceptance import AsyncAcceptance
from api.auth.keys import KeyRing
from api.auth.limits import SocketLimit
from api.auth.tokens import Tokens
from api.health import HealthCheck
from api.loops import BackgroundLoops
from api.stream import Hub
from temporal.applies import ApplyService
from temporal.promotions import PromotionService
from temporal.rebalance_schedules import RebalanceScheduleService
from temporal.rebalancings import RebalancingService
from temporal.submissions import SubmissionService

T = TypeVar("T")

# Halts that a Gateway carries out at the same time. Each may wait for the fence of its world.
_HALTS = 8


@dataclass(frozen=True)
class GatewayState:
    """The stores, services and limits of one Gateway."""

    config: Settings
    stores: Stores
    submissions: SubmissionService
    applies: ApplyService
    promotions: PromotionService
    rebalancings: RebalancingService
    rebalance_schedules: RebalanceScheduleService
    keys: KeyRing
    tokens: Tokens
    hub: Hub
    sockets: SocketLimit
    acceptance: AsyncAcceptance
    loops: BackgroundLoops
    health: HealthCheck
    revoked: set[str] = field(default_factory=set)
    """Ids of revoked tokens, as last read from the register."""

    _halting: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_HALTS, "halt"))

    async def run_halt(self, act: Callable[[], T]) -> T:
        """Carry out a halt on threads that only halts use, and reserved connections.

        Other requests may use up all others.
        """

        def reserved() -> T:
            with self.stores.database.reserved():
                return act()

        return await asyncio.get_running_loop().run_in_executor(self._halting, reserved)

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
