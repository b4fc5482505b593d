"""Halts: close a world's fence at once, until an operator resumes it."""

from collections.abc import Mapping

from activities.fence.cancelling import Selection, cancel_open
from activities.fence.rules import BreakerCount, FenceState
from activities.fence.state import FenceEvent, clear_halt, log_fence_change, publish_fence_change
from activities.storage.tables import FenceRow
from activities.storage.transactions import Transaction
from qmtl_sdk.contracts.orders import MAX_REASON

HALT_WAIT_S = 5.0
"""Seconds that a halt waits for the fence of its world: a fence that hangs must not use up all threads."""


def halt_reason(actor: str, reason: str) -> str:
    """Return the text that a halted world shows."""
    return f"{actor}: {reason}" if reason else f"by {actor}"


def halt(tx: Transaction, fence: FenceRow, reason: str, entries: dict[str, str] | None = None) -> None:
    """Close a world's fence until someone resumes it. The caller holds the fence.

    Orders that were not sent are cancelled. Open ones are cancelled by the router at their venues, unless the
    world's `on_halt` leaves them. `entries` are the hashes of the strategies' activations where the caller
    knows them already.
    """
    before = {"halted": fence.halted, "epoch": fence.epoch}
    fence.halted = reason[:MAX_REASON]
    fence.epoch += 1
    fence.halt_epoch = fence.epoch
    log_fence_change(tx, fence, "halt", fence.world_id, fence.halted)
    why = f"the world was halted ({fence.halted})"
    stopped = cancel_open(tx, fence, why, fence.on_halt == "cancel", Selection())
    after = {"halted": fence.halted, "epoch": fence.epoch, **stopped.model_dump()}
    publish_fence_change(tx, fence, FenceEvent("halt", "world.halted", before, after, entries=entries))


def lift_halt(tx: Transaction, fence: FenceRow, reason: str) -> None:
    """Lift a halt of a world that an apply still holds: its state stays, its epoch grows."""
    before = {"halted": fence.halted, "state": fence.state, "epoch": fence.epoch}
    clear_halt(fence)
    fence.epoch += 1
    log_fence_change(tx, fence, "resume", fence.world_id, reason)
    after = {"halted": "", "state": fence.state, "epoch": fence.epoch, "reason": reason}
    publish_fence_change(tx, fence, FenceEvent("resume", "world.resumed", before, after))


def store_counts(
    tx: Transaction, fences: Mapping[str, FenceState], counts: Mapping[str, BreakerCount]
) -> None:
    """Store the counts of worlds with a circuit breaker, and halt those where it has tripped."""
    for world_id, fence in fences.items():
        if not fence.has_breaker:
            continue
        row = tx.session.get_one(FenceRow, world_id, populate_existing=True)
        row.minute, row.orders, row.refused = fence.minute, fence.orders, fence.refused
        tx.session.add(row)
        if counts[world_id].tripped and not row.halted:
            halt(tx, row, counts[world_id].tripped)
