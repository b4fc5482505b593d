"""Resolve the compute context of a strategy after its world's decision."""

from datetime import datetime

from qmtl_sdk.contracts.domains import (
    DEFAULT_TTL_S,
    ComputeContext,
    DataScope,
    Domain,
    Downgrade,
    resolve_context,
)
from qmtl_sdk.contracts.submission import (
    SubmissionAck,
    SubmissionOutcome,
)


def decided_context(ack: SubmissionAck, outcome: SubmissionOutcome | None, now: datetime) -> ComputeContext:
    """Return the context after the decision; a missing, stale or unclear one means backtest in safe mode."""
    known = ack.context
    decision, activation = (outcome.decision, outcome.activation) if outcome else (None, None)
    mode = activation.effective_mode if activation is not None else None
    return resolve_context(
        DataScope(ack.world_id, known.as_of, known.partition, known.dataset_fingerprint, known.clock),
        mode,
        decided_at=decision.decided_at if decision else None,
        now=now,
        ttl_s=decision.ttl if decision else DEFAULT_TTL_S,
        # The service allowed live, or would have but for what it checks after that.
        allow_live=known.execution_domain is Domain.LIVE
        or known.downgrade_reason in (Downgrade.MISSING_FINGERPRINT, Downgrade.CLOCK_CONFLICT),
    )
