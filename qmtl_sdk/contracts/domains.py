"""Execution domains: one vocabulary, and the rule that closes everything that is missing, stale or unknown.

A world's `effective_mode` decides; a client's word is a hint and never raises the domain. Whatever can't be shown to be fresh and allowed
becomes `backtest` with orders off, and says why.
"""

import re
from datetime import datetime, timedelta
from enum import StrEnum

from qmtl_sdk.contracts.model import Model

DEFAULT_TTL_S = 300


class Domain(StrEnum):
    BACKTEST = "backtest"
    DRYRUN = "dryrun"
    LIVE = "live"
    SHADOW = "shadow"


class Downgrade(StrEnum):
    """Why a context is safer than what was asked for."""

    MISSING_AS_OF = "missing_as_of"
    DECISION_UNAVAILABLE = "decision_unavailable"
    STALE_DECISION = "stale_decision"
    LIVE_NOT_ALLOWED = "live_not_allowed"
    MISSING_FINGERPRINT = "missing_fingerprint"
    UNKNOWN_MODE = "unknown_mode"


_WORDS = {
    **dict.fromkeys(
        ("validate", "validation", "compute", "computeonly", "offline", "sandbox", "backtest"),
        Domain.BACKTEST,
    ),
    "dryrun": Domain.DRYRUN,
    **dict.fromkeys(("live", "prod", "production"), Domain.LIVE),
    "shadow": Domain.SHADOW,
}


def domain_of(word: str | None) -> Domain | None:
    """The domain that a mode's word means, without regard to case, spaces, `_` and `-`; None for an unknown word or none."""
    key = re.sub(r"[\s_-]", "", word or "").lower()
    if key.startswith(("paper", "sim")):
        return Domain.DRYRUN
    return _WORDS.get(key)


class ComputeContext(Model):
    """Where a run computes, as the services decided it. `as_of` is an ISO time in UTC: no bar that closes after it is read."""

    world_id: str
    execution_domain: Domain
    as_of: str | None = None
    partition: str = ""
    dataset_fingerprint: str | None = None
    downgraded: bool = False
    safe_mode: bool = False
    downgrade_reason: Downgrade | None = None

    @property
    def orders_allowed(self) -> bool:
        """Only a context that was not downgraded may send orders, and only to a paper venue or the fence."""
        return not self.safe_mode and self.execution_domain in (Domain.DRYRUN, Domain.LIVE)


def resolve(
    world_id: str,
    mode: str | None,
    *,
    decided_at: datetime | None,
    now: datetime,
    ttl_s: float = DEFAULT_TTL_S,
    as_of: str | None = None,
    partition: str = "",
    dataset_fingerprint: str | None = None,
    allow_live: bool = False,
) -> ComputeContext:
    """The context that a decision allows. `mode` is its effective_mode, `decided_at` when it was made (None: there is no decision)."""

    def context(domain: Domain, reason: Downgrade | None = None) -> ComputeContext:
        down = reason is not None
        return ComputeContext(
            world_id=world_id,
            execution_domain=domain,
            as_of=as_of,
            partition=partition,
            dataset_fingerprint=dataset_fingerprint,
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
    if domain is Domain.LIVE and not dataset_fingerprint:
        return context(Domain.BACKTEST, Downgrade.MISSING_FINGERPRINT)
    if domain in (Domain.BACKTEST, Domain.DRYRUN) and not as_of:
        return context(Domain.BACKTEST, Downgrade.MISSING_AS_OF)
    return context(domain)
