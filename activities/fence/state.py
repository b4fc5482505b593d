"""The fence row of a world: the state that every order is checked against, and how it changes.

Whatever takes permission away in a world holds `fence:{world}` from before the change until it commits.
Orders take the same lock, so an order sees all of a change or none of it. Tokens and heartbeats are read as
last committed. Nothing outside this folder writes the fence row.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlmodel import Session

from activities.fence.activations import activation_hashes, apply_decision, halts_of, store_activation
from activities.fence.log_line import LogLine
from activities.fence.rules import DRAINING, FROZEN, OPEN
from activities.fence.stored_limits import limits_text
from activities.storage.tables import FenceRow, OrderLogRow
from activities.storage.transactions import RecordedChange, Transaction, table_of, utc_now
from activities.worlds.edges import LIVE_EDGE, write_edge
from qmtl_sdk.contracts.applies import FenceStatus
from qmtl_sdk.contracts.decisions import WHOLE_WORLD, ActivationEnvelope, DecisionEnvelope
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.worlds import WorldSpec

_ORDER_LOG = table_of(OrderLogRow)

Phase = Literal["freeze", "unfreeze", "halt", "resume"]


@dataclass(frozen=True)
class FenceEvent:
    """A change of the fence, as it is audited (`action`, `before`, `after`) and published (`phase`).

    `entries` are the hashes of the strategies' activations where the caller knows them already.
    """

    phase: Phase
    action: str
    before: object
    after: object
    run_id: str = ""
    requires_ack: bool = False
    entries: dict[str, str] | None = None


def locked_fence(tx: Transaction, world_id: str, within_ms: int = 0) -> FenceRow:
    """Lock the fence row against orders until the transaction ends.

    Raises QmtlError (E_WORLD_UNKNOWN); LockHeldError where it is still held after `within_ms`. With 0
    it waits as `Transaction.lock` does.
    """
    tx.lock(f"fence:{world_id}", within_ms)
    return present_fence(tx.session, world_id)


def present_fence(session: Session, world_id: str) -> FenceRow:
    """Read the fence row as it is now, without its lock. Raises QmtlError (E_WORLD_UNKNOWN)."""
    row = session.get(FenceRow, world_id, populate_existing=True)
    if row is None:
        raise QmtlError("E_WORLD_UNKNOWN", f"there is no world {world_id!r}", "qmtl world list prints them")
    return row


def new_fence(spec: WorldSpec) -> FenceRow:
    """Build the fence row of a new world: open for dryrun, with the edge to live closed."""
    fence = FenceRow(world_id=spec.world)
    _set_limits(fence, spec)
    return fence


def set_limits(tx: Transaction, fence: FenceRow, spec: WorldSpec, active: bool) -> None:
    """Copy what the fence checks from the world's spec.

    A world that is not `active` allows no live orders.
    """
    _set_limits(fence, spec)
    fence.allow_live = spec.allow_live and active
    tx.session.add(fence)


def _set_limits(fence: FenceRow, spec: WorldSpec) -> None:
    limits = spec.order_limits
    fence.allow_live = spec.allow_live
    fence.on_halt = spec.on_halt
    fence.max_orders = spec.circuit_breaker.max_orders_per_minute
    fence.max_refused = spec.circuit_breaker.max_refused_per_minute
    fence.symbols = "" if limits.symbols is None else json.dumps(limits.symbols)
    fence.max_quantity = str(limits.max_quantity or "")
    fence.max_notional = str(limits.max_notional or "")
    fence.position_limits = limits_text(limits)


def set_live_edge(tx: Transaction, fence: FenceRow, active: bool, reason: str) -> None:
    """Open or close the edge from backtest to live, in the fence and in the world's edges."""
    if fence.live_edge == active:
        return
    fence.live_edge = active
    tx.session.add(fence)
    write_edge(tx, fence.world_id, LIVE_EDGE, active, reason)


def set_decision(tx: Transaction, fence: FenceRow, fresh_until: str) -> None:
    """Accept orders on the newest decision until `fresh_until` (ISO 8601, UTC)."""
    fence.fresh_until = fresh_until
    tx.session.add(fence)


def freeze_fence(
    tx: Transaction, fence: FenceRow, run_id: str, close_edge: bool, entries: dict[str, str]
) -> ActivationEnvelope:
    """Refuse orders for `run_id` under a new epoch, and close the edge to live if `close_edge`.

    `entries` are the hashes of the strategies' activations.
    """
    before = {"state": fence.state, "epoch": fence.epoch}
    fence.state = FROZEN
    fence.holder = run_id
    fence.epoch += 1
    if close_edge:
        set_live_edge(tx, fence, False, f"closed by {run_id}")
    log_fence_change(tx, fence, "freeze", run_id)
    after = _changed(fence, live_edge=fence.live_edge)
    event = FenceEvent("freeze", "apply.frozen", before, after, run_id, requires_ack=True, entries=entries)
    return publish_fence_change(tx, fence, event)


def drain_fence(tx: Transaction, fence: FenceRow, run_id: str) -> None:
    """Go from frozen to draining: open orders may finish, new ones are still refused."""
    fence.state = DRAINING
    log_fence_change(tx, fence, "drain", run_id)
    before = {"state": FROZEN}
    event = FenceEvent("freeze", "apply.draining", before, _changed(fence), run_id)
    publish_fence_change(tx, fence, event)


def open_fence(
    tx: Transaction,
    fence: FenceRow,
    run_id: str,
    decision: DecisionEnvelope | None,
    lift: bool = False,
    reason: str = "",
) -> ActivationEnvelope:
    """Accept orders again under a new epoch, with the activations of the newest `decision`.

    `lift` lifts a halt too.
    """
    before: dict[str, object] = {"state": fence.state, "epoch": fence.epoch}
    if lift:
        before = {"halted": fence.halted, **before}
        clear_halt(fence)
    fence.state = OPEN
    fence.holder = ""
    fence.epoch += 1
    entries = None if decision is None else dict(apply_decision(tx, fence, decision, run_id))
    log_fence_change(tx, fence, "unfreeze", run_id, reason)
    if before.get("halted"):
        log_fence_change(tx, fence, "resume", fence.world_id, reason)
    after = _changed(fence, live_edge=fence.live_edge, reason=reason)
    event = FenceEvent(
        "unfreeze", "apply.unfrozen", before, after, run_id, requires_ack=True, entries=entries
    )
    return publish_fence_change(tx, fence, event)


def lock_for_rebalancing(tx: Transaction, fence: FenceRow, run_id: str, locked: bool) -> None:
    """Lock a world for a rebalancing, or unlock what that run has locked."""
    if locked or fence.rebalancing == run_id:
        fence.rebalancing = run_id if locked else ""
        tx.session.add(fence)


def require_unlocked(fence: FenceRow, of_applies: bool = True) -> None:
    """Check that no rebalancing holds a world, and no apply either unless those do not matter.

    Raises QmtlError: E_WORLD_FROZEN, E_REBALANCING.
    """
    if of_applies and fence.state != OPEN:
        raise QmtlError(
            "E_WORLD_FROZEN",
            f"{fence.world_id} is {fence.state} by {fence.holder}",
            "check that run; then qmtl world resume W",
        )
    if fence.rebalancing:
        raise QmtlError(
            "E_REBALANCING",
            f"{fence.world_id} is being rebalanced by {fence.rebalancing}",
            "wait for it, or abort it: qmtl world rebalance-abort RUN_ID",
            run_id=fence.rebalancing,
        )


def clear_halt(fence: FenceRow) -> None:
    """Take a halt back. The circuit breaker counts anew: it would halt again at the next order."""
    fence.halted = ""
    fence.minute = ""
    fence.orders = 0
    fence.refused = 0


def log_fence_change(
    tx: Transaction, fence: FenceRow, kind: str, ref: str, reason: str = "", strategy_id: str = ""
) -> None:
    """Write a change of the fence into the order log, between the orders before and after it.

    `strategy_id`: the strategy that it concerns; empty where it concerns the whole world.
    """
    line = LogLine(utc_now(), fence.world_id, kind, ref, fence.epoch, strategy_id, reason, "")
    tx.session.connection().execute(_ORDER_LOG.insert(), line._asdict())


def publish_fence_change(tx: Transaction, fence: FenceRow, event: FenceEvent) -> ActivationEnvelope:
    """Audit a change of the fence, and publish it to the order gates as an activation of the whole world."""
    fence.activation_sequence += 1
    is_open = fence.state == OPEN and not fence.halted
    envelope = ActivationEnvelope(
        world_id=fence.world_id,
        strategy_id=WHOLE_WORLD,
        active=is_open,
        weight=1.0 if is_open else 0.0,
        freeze=fence.state in (FROZEN, DRAINING),
        drain=fence.state == DRAINING,
        halted=bool(fence.halted),
        effective_mode=None,
        etag=f"{fence.epoch}",
        run_id=event.run_id,
        ts=datetime.now(UTC),
        epoch=fence.epoch,
        phase=event.phase,
        requires_ack=event.requires_ack,
        sequence=fence.activation_sequence,
    )
    entries = activation_hashes(tx.session, fence.world_id) if event.entries is None else event.entries
    envelope = envelope.model_copy(update={"state_hash": store_activation(tx, envelope, entries)})
    tx.session.add(fence)
    tx.record(
        RecordedChange(
            event.action,
            fence.world_id,
            event.run_id or fence.world_id,
            before=event.before,
            after=event.after,
            correlation_id=event.run_id,
            event="activation_updated",
            about=WHOLE_WORLD,
            data=envelope.json_dict(),
        )
    )
    return envelope


def fence_status(session: Session, world_id: str) -> FenceStatus:
    """Read whether a world accepts orders, and why not. The world exists."""
    fence = session.get_one(FenceRow, world_id)
    return FenceStatus.model_validate(
        {
            "world_id": world_id,
            "epoch": fence.epoch,
            "state": fence.state,
            "held_by": fence.holder,
            "rebalanced_by": fence.rebalancing,
            "halted": fence.halted,
            "allow_live": fence.allow_live,
            "live_edge": fence.live_edge,
            "decision_fresh_until": fence.fresh_until or None,
            "strategy_halts": halts_of(session, world_id),
        }
    )


def _changed(fence: FenceRow, **more: object) -> dict[str, object]:
    return {"state": fence.state, "epoch": fence.epoch, **more}
