"""A world's gate in the database: the fence row that orders are checked against, and what everyone is told when it changes.

Whoever changes something that the fence reads holds `fence:{world}` from before the change to the commit; orders share it. So an order sees all of a change or nothing.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from sqlmodel import Session, SQLModel, select

from activities.storage.database import Transaction, utc_now
from activities.storage.tables import ActivationRow, FenceRow, WorldRow
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import combined_hash, entry_hash
from qmtl_sdk.contracts.worlds import WHOLE_WORLD, ActivationEnvelope

OPEN, FROZEN, DRAINING = "open", "frozen", "draining"
LIVE_EDGE = ("domain:backtest", "domain:live")
_LOG = SQLModel.metadata.tables["order_log"]
Phase = Literal["freeze", "unfreeze", "halt", "resume"]


def locked_fence(tx: Transaction, world_id: str) -> FenceRow:
    """The fence row, held against orders until the end of the transaction. Raises QmtlError (E_WORLD_UNKNOWN)."""
    tx.lock(f"fence:{world_id}")
    row = tx.session.get(FenceRow, world_id, populate_existing=True)
    if row is None:
        raise QmtlError("E_WORLD_UNKNOWN", f"there is no world {world_id!r}", "qmtl world list prints them")
    return row


def log_fence_change(tx: Transaction, fence: FenceRow, kind: str, ref: str, reason: str = "") -> None:
    """Put a change of the fence between the orders of its world, where it happened."""
    row = {
        "at": utc_now(),
        "world_id": fence.world_id,
        "kind": kind,
        "ref": ref,
        "epoch": fence.epoch,
        "strategy_id": "",
        "reason": reason,
        "body": "",
    }
    tx.session.connection().execute(_LOG.insert(), row)


def publish_gate_change(
    tx: Transaction,
    world: WorldRow,
    fence: FenceRow,
    phase: Phase,
    run_id: str,
    *,
    action: str,
    before: object,
    after: object,
    requires_ack: bool = False,
    entries: dict[str, str] | None = None,
) -> ActivationEnvelope:
    """Record a change of the gate and tell everyone: an activation of the whole world, with its epoch. `entries`: the hashes of its strategies' activations, where they are known."""
    world.activation_sequence += 1
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
        run_id=run_id,
        ts=datetime.now(UTC),
        epoch=fence.epoch,
        phase=phase,
        requires_ack=requires_ack,
        sequence=world.activation_sequence,
    )
    envelope = envelope.model_copy(
        update={
            "state_hash": store_activation(
                tx, envelope, activation_hashes(tx.session, fence.world_id) if entries is None else entries
            )
        }
    )
    tx.session.add(world)
    tx.session.add(fence)
    tx.record(
        action,
        fence.world_id,
        run_id or fence.world_id,
        before=before,
        after=after,
        correlation_id=run_id,
        event="activation_updated",
        about=WHOLE_WORLD,
        data=envelope.json_dict(),
    )
    return envelope


def halt(tx: Transaction, fence: FenceRow, reason: str) -> None:
    """Close a world's gate until someone resumes it. The caller holds the fence."""
    world = tx.session.get_one(WorldRow, fence.world_id)
    before = {"halted": fence.halted, "epoch": fence.epoch}
    fence.halted, fence.epoch = reason[:300], fence.epoch + 1
    log_fence_change(tx, fence, "halt", fence.world_id, fence.halted)
    publish_gate_change(
        tx,
        world,
        fence,
        "halt",
        "",
        action="world.halted",
        before=before,
        after={"halted": fence.halted, "epoch": fence.epoch},
    )


def activation_hashes(session: Session, world_id: str) -> dict[str, str]:
    """The entry hash of each activation of a world, the whole world's among them."""
    rows = session.exec(select(ActivationRow).where(ActivationRow.world_id == world_id))
    return entry_hashes(ActivationEnvelope.model_validate_json(row.body) for row in rows)


def entry_hashes(activations: Iterable[ActivationEnvelope]) -> dict[str, str]:
    return {item.strategy_id: entry_hash(item.json_dict()) for item in activations}


def store_activation(tx: Transaction, envelope: ActivationEnvelope, entries: dict[str, str]) -> str:
    """Store an activation; `entries` is brought up to date. The hash of the world's whole activation with it."""
    entries[envelope.strategy_id] = entry_hash(envelope.json_dict())
    found = combined_hash(entries)
    body = envelope.model_copy(update={"state_hash": found}).model_dump_json()
    tx.upsert(
        ActivationRow(
            world_id=envelope.world_id,
            strategy_id=envelope.strategy_id,
            etag=envelope.etag,
            active=envelope.active,
            mode=envelope.effective_mode or "",
            body=body,
        )
    )
    return found
