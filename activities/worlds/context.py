"""What the services decide about a run before anything is computed: domain, as_of, data, costs. The client's word is a hint.

`as_of` is the close of the newest bar that the world's clock has reached, unless the client pins an earlier one: it moves only when a bar closes,
so that two runs in between share their outputs. The domain follows from the world's decision, and closes to backtest where there is none.
"""

from datetime import UTC, datetime

from activities.worlds.store import RunContextBody
from qmtl_sdk.contracts.domains import DEFAULT_TTL_S, resolve
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import StrategySubmit
from qmtl_sdk.contracts.worlds import DecisionEnvelope, World
from qmtl_sdk.data.presets import bind, fingerprint_of, newest_close


def run_context(run_id: str, world: World, submit: StrategySubmit, decision: DecisionEnvelope | None, wall: datetime) -> RunContextBody:
    """Raises QmtlError: those of `bind`, E_DATA_EMPTY, E_BODY_INVALID for an `as_of` that is no time."""
    now = world.now(wall)
    bindings = bind(submit.dag, world.spec)
    pinned = _pinned(submit.meta.as_of)
    until = min(now, pinned) if pinned else now
    newest, laggard, youngest = newest_close(bindings, until)
    as_of = newest or pinned
    context = resolve(
        world.spec.world,
        decision.effective_mode if decision else None,
        decided_at=decision.decided_at if decision else None,
        now=wall,
        ttl_s=decision.ttl if decision else DEFAULT_TTL_S,
        as_of=as_of.isoformat() if as_of else None,
        dataset_fingerprint=fingerprint_of(bindings) if bindings else None,
        allow_live=world.spec.allow_live,
    )
    return RunContextBody(
        run_id=run_id,
        world_id=world.spec.world,
        strategy_id=submit.dag.strategy_id,
        name=submit.meta.name,
        context=context,
        bindings=bindings,
        execution=world.spec.execution,
        data_first=youngest,
        data_last=laggard,
    )


def _pinned(as_of: str | None) -> datetime | None:
    if as_of is None:
        return None
    try:
        moment = datetime.fromisoformat(as_of)
    except ValueError as error:
        raise QmtlError("E_BODY_INVALID", f"meta.as_of is {as_of!r}, which is not a time", "write it like 2024-01-31T14:00:00Z") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
