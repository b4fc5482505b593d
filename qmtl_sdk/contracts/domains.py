"""Execution domains, and the rule that closes everything that is missing, stale or unknown.

A world's `effective_mode` decides; a client's request is a hint that never raises the domain. A context that
is not shown to be fresh and allowed becomes `backtest` with orders off, and says why.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from qmtl_sdk.contracts.model import Model

DEFAULT_TTL_S = 300
"""Seconds for which a decision counts as fresh, where the policy does not say."""

DeclaredClock = Literal["virtual", "wall"]
"""The clock that a strategy's nodes declare: `virtual` for history up to `as_of`, `wall` for live alone."""

Mode = Literal["validate", "paper", "live"]
"""The modes that a world gives its strategies.

(A mode on the wire is text: an unknown one must close, not fail.)
"""

MODE_OF: dict[str, Mode] = {"backtest": "validate", "dryrun": "paper", "live": "live"}
"""The mode of a stage."""

_RANK: dict[str, int] = {"validate": 0, "paper": 1, "live": 2}


def rank_of(mode: str | None) -> int:
    """Return how close to live a mode is: 0, 1 or 2; 0 for an unknown mode."""
    return _RANK.get(mode or "", 0)


class Domain(StrEnum):
    """Where a run computes. Domains share no state."""

    BACKTEST = "backtest"
    DRYRUN = "dryrun"
    LIVE = "live"
    SHADOW = "shadow"


class Downgrade(StrEnum):
    """Why a context is safer than what was requested."""

    MISSING_AS_OF = "missing_as_of"
    DECISION_UNAVAILABLE = "decision_unavailable"
    STALE_DECISION = "stale_decision"
    LIVE_NOT_ALLOWED = "live_not_allowed"
    MISSING_FINGERPRINT = "missing_fingerprint"
    UNKNOWN_MODE = "unknown_mode"
    CLOCK_CONFLICT = "clock_conflict"


_DOMAIN_OF = {
    **dict.fromkeys(
        ("validate", "validation", "compute", "computeonly", "offline", "sandbox", "backtest"),
        Domain.BACKTEST,
    ),
    "dryrun": Domain.DRYRUN,
    **dict.fromkeys(("live", "prod", "production"), Domain.LIVE),
    "shadow": Domain.SHADOW,
}

# The clock of each domain that a declared one is compared with; shadow mirrors live and sends no orders.
_CLOCK_OF: dict[Domain, DeclaredClock] = {
    Domain.BACKTEST: "virtual",
    Domain.DRYRUN: "virtual",
    Domain.LIVE: "wall",
}


def domain_of(word: str | None) -> Domain | None:
    """Return the domain of a mode, ignoring case, spaces, `_` and `-`; None for an unknown mode."""
    key = re.sub(r"[\s_-]", "", word or "").lower()
    if key.startswith(("paper", "sim")):
        return Domain.DRYRUN
    return _DOMAIN_OF.get(key)


def stage_of(mode: str | None) -> str:
    """Return the stage that a mode stands for: backtest, dryrun or live; an unknown mode as it is."""
    return str(domain_of(mode) or mode or "")


class ComputeContext(Model):
    """Where a run computes, as the services decided it.

    `as_of`: an ISO time in UTC; no bar that closes after it is read. `downgraded`, `safe_mode`: the context
    is safer than what was requested, and orders are off; `downgrade_reason` says why. `clock`: the one that
    the strategy's nodes declare.
    """

    world_id: str
    execution_domain: Domain
    as_of: str | None = None
    partition: str = ""
    dataset_fingerprint: str | None = None
    clock: DeclaredClock | None = None
    downgraded: bool = False
    safe_mode: bool = False
    downgrade_reason: Downgrade | None = None

    @property
    def orders_allowed(self) -> bool:
        """Whether orders may be sent at all: in dryrun and live, and never from a downgraded context."""
        return not self.safe_mode and self.execution_domain in (Domain.DRYRUN, Domain.LIVE)


@dataclass(frozen=True, slots=True)
class DataScope:
    """The world, the data and the declared clock of a run, as they are copied into its context."""

    world_id: str
    as_of: str | None = None
    partition: str = ""
    dataset_fingerprint: str | None = None
    clock: DeclaredClock | None = None


def resolve_context(
    scope: DataScope,
    mode: str | None,
    *,
    decided_at: datetime | None,
    now: datetime,
    ttl_s: float = DEFAULT_TTL_S,
    allow_live: bool = False,
) -> ComputeContext:
    """Return the context that a decision allows.

    `mode`: the decision's effective_mode. `decided_at`: when it was made; None if there is no decision.
    """

    def context(domain: Domain, reason: Downgrade | None = None) -> ComputeContext:
        down = reason is not None
        return ComputeContext(
            world_id=scope.world_id,
            execution_domain=domain,
            as_of=scope.as_of,
            partition=scope.partition,
            dataset_fingerprint=scope.dataset_fingerprint,
            clock=scope.clock,
            downgraded=down,
            safe_mode=down,
            downgrade_reason=reason,
        )

    if decided_at is None or not mode:
        return context(Domain.BACKTEST, Downgrade.DECISION_UNAVAILABLE)
    domain = domain_of(mode)
    if domain is None:
        return context(Domain.BACKTEST, Downgrade.UNKNOWN_MODE)
    if domain is Domain.SHADOW:
        return context(Domain.SHADOW)
    if now - decided_at > timedelta(seconds=ttl_s):
        return context(Domain.BACKTEST, Downgrade.STALE_DECISION)
    if domain is Domain.LIVE and not allow_live:
        return context(Domain.BACKTEST, Downgrade.LIVE_NOT_ALLOWED)
    if domain is Domain.LIVE and not scope.dataset_fingerprint:
        return context(Domain.BACKTEST, Downgrade.MISSING_FINGERPRINT)
    if domain in (Domain.BACKTEST, Domain.DRYRUN) and not scope.as_of:
        return context(Domain.BACKTEST, Downgrade.MISSING_AS_OF)
    if scope.clock is not None and scope.clock != _CLOCK_OF[domain]:
        return context(Domain.BACKTEST, Downgrade.CLOCK_CONFLICT)
    return context(domain)
