"""Halts: close a world's fence at once, until an operator resumes it."""

from activities.fence.state import FenceEvent, log_fence_change, publish_gate_change
from activities.storage.tables import FenceRow
from activities.storage.transactions import Transaction

# Characters of a halt's reason that are stored.
_REASON_LENGTH = 300


def halt(tx: Transaction, fence: FenceRow, reason: str) -> None:
    """Close a world's fence until someone resumes it. The caller holds the fence."""
    before = {"halted": fence.halted, "epoch": fence.epoch}
    fence.halted = reason[:_REASON_LENGTH]
    fence.epoch += 1
    log_fence_change(tx, fence, "halt", fence.world_id, fence.halted)
    after = {"halted": fence.halted, "epoch": fence.epoch}
    publish_gate_change(tx, fence, FenceEvent("halt", "world.halted", before, after))


def lift_halt(tx: Transaction, fence: FenceRow, reason: str) -> None:
    """Lift a halt of a world that an apply still holds: its state stays, its epoch grows."""
    before = {"halted": fence.halted, "state": fence.state, "epoch": fence.epoch}
    fence.halted = ""
    fence.epoch += 1
    log_fence_change(tx, fence, "resume", fence.world_id, reason)
    after = {"halted": "", "state": fence.state, "epoch": fence.epoch, "reason": reason}
    publish_gate_change(tx, fence, FenceEvent("resume", "world.resumed", before, after))
