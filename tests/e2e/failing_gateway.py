"""A Gateway whose loops raise while a file of their name lies in `HOME/fail`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from activities.applies.acknowledgements import SqlApplyAcks
from activities.events.bus import SqliteBus
from activities.fence.acknowledgements import SqlGatewayLeases
from activities.fence.flattens import SqlFlattens
from activities.sessions.sql import SqlSessionStore
from activities.settings import settings
from api import gateway
from api.auth.tokens import Tokens
from temporal.applies import ApplyService
from temporal.rebalance_schedules import RebalanceScheduleService
from temporal.rebalancings import RebalancingService
from temporal.submissions import SubmissionService

# What each loop calls, by the loop's name.
CALLS: dict[str, tuple[type, str]] = {
    "session expiry": (SqlSessionStore, "expire"),
    "flattens": (SqlFlattens, "continue_due"),
    "revoked tokens": (Tokens, "revoked"),
    "Gateway lease": (SqlGatewayLeases, "heartbeat"),
    "acknowledgements": (SqlApplyAcks, "ack"),
    "stream": (SqliteBus, "follow"),
    "recovery of submissions": (SubmissionService, "recover"),
    "recovery of applies": (ApplyService, "recover"),
    "recovery of rebalancings": (RebalancingService, "recover"),
    "recovery of schedules": (RebalanceScheduleService, "recover"),
}


def fail(home: Path, name: str, owner: type, method: str) -> None:
    real: Callable[..., Any] = getattr(owner, method)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if (home / "fail" / name).exists():
            raise ZeroDivisionError(f"the secret of {name}")
        return real(*args, **kwargs)

    setattr(owner, method, failing)


if __name__ == "__main__":
    for loop, (owner, method) in CALLS.items():
        fail(settings().home, loop, owner, method)
    gateway.RECOVER_EVERY_S = 0.2
    gateway.main()
