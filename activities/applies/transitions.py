"""What each step of an apply changes, within the step's transaction.

`SqlApplySteps` does each of them once. The transaction holds the world, so no other step, decision or change
of rules comes between. A step locks the fence only once it changes what orders are checked against: they wait
meanwhile.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from activities.applies.approvals import require_approved
from activities.applies.context import Snapshot, allocation_of
from activities.applies.grounds import require_same_world, require_unchanged
from activities.applies.status import record_progress
from activities.decisions.sql import newest_decision
from activities.fence.activations import (
    activation_etag,
    change_activations,
    entry_hashes,
    stored_activations,
    strategy_activations,
)
from activities.fence.flattening import begin_flattens
from activities.fence.state import (
    drain_fence,
    freeze_fence,
    locked_fence,
    log_fence_change,
    open_fence,
    require_unlocked,
    set_live_edge,
)
from activities.graph.sql import SqlGraphStore, stored_dag
from activities.messages.apply import ApprovalWait, FenceChange, StepDone
from activities.order_settings import Accounts
from activities.storage.tables import ApplyRow, ApplyStepRow, FenceRow, WorldRow
from activities.storage.transactions import Transaction, utc_now
from activities.worlds.specs import pin_fingerprint, set_node_states
from qmtl_sdk.contracts.applies import ApplyOutcome
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.domains import Domain, domain_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.plans import ApplyPlan, Change, StrategyAllocation

# Characters of an outcome's reason that are stored.
_REASON_LENGTH = 1000

# The first step by which a run has restored or unfrozen the world.
_GOING_BACK = (
    select(ApplyStepRow.step)
    .where(
        ApplyStepRow.world_id == bindparam("world"),
        ApplyStepRow.run_id == bindparam("run"),
        col(ApplyStepRow.step).in_(("restore", "unfreeze")),
    )
    .order_by(ApplyStepRow.started_at)
)


def await_approval(tx: Transaction, row: ApplyRow, until: datetime) -> ApprovalWait:
    """Record that the apply waits for approvals, and until when."""
    title = ApplyPlan.model_validate_json(row.plan).title
    record_progress(tx, row, "apply.waiting", "approval", after={"state": "approval"}, title=title)
    return ApprovalWait(until=until)


def freeze(tx: Transaction, row: ApplyRow) -> FenceChange:
    """Take a snapshot of the world, and refuse orders under a new epoch."""
    _require_not_aborted(row)
    plan = ApplyPlan.model_validate_json(row.plan)
    require_approved(tx.session, row, plan)
    context = require_unchanged(tx.session, plan)
    fence = locked_fence(tx, row.world_id)
    require_unlocked(fence)
    stored = stored_activations(tx.session, row.world_id)
    row.snapshot = Snapshot(
        allocations={item.strategy_id: allocation_of(item) for item in strategy_activations(stored)},
        live_edge=fence.live_edge,
        edge_closings=fence.edge_closings,
        fingerprint=context.world.pinned_fingerprint,
    ).model_dump_json()
    row.epoch_before = fence.epoch
    close_edge = plan.live_edge_before and plan.freeze.close_live_edge
    change = freeze_fence(tx, fence, row.run_id, close_edge, entry_hashes(stored.values()))
    return _fence_change(change)


def drain(tx: Transaction, row: ApplyRow) -> StepDone:
    """Let open orders finish while new ones are refused."""
    fence = _held_fence(tx, row)
    drain_fence(tx, fence, row.run_id)
    return StepDone()


def switch(tx: Transaction, row: ApplyRow, accounts: Accounts) -> StepDone:
    """Change activations, queues, the edge to live and the pinned fingerprint, as the plan says.

    `accounts` hold the positions that it closes.
    """
    _require_not_aborted(row)
    _require_not_restored(tx.session, row)
    fence = _held_fence(tx, row)
    plan = ApplyPlan.model_validate_json(row.plan)
    context = require_same_world(tx.session, plan)
    stored = stored_activations(tx.session, row.world_id)
    goes_live = any(
        change.after.active and change.after.mode == "live" and change.goes_up for change in plan.changes
    )
    if not fence.allow_live and (plan.live_edge_after or goes_live):
        raise QmtlError(
            "E_LIVE_NOT_ALLOWED",
            f"world {row.world_id} does not allow live any more",
            "an operator allows it with: qmtl world allow-live W",
        )
    for change in plan.changes:
        _bind_queues(tx, row.world_id, change)
    allocations = {change.strategy_id: change.after for change in plan.changes}
    _set_allocations(tx, fence, stored, allocations, plan.fingerprint_after, row.run_id)
    edge = "opened" if plan.live_edge_after else "closed"
    set_live_edge(tx, fence, plan.live_edge_after, f"{edge} by {row.run_id}")
    if plan.fingerprint_after != context.world.pinned_fingerprint:
        pin_fingerprint(tx, tx.session.get_one(WorldRow, row.world_id), plan.fingerprint_after)
    log_fence_change(tx, fence, "switch", row.run_id)
    _flatten(tx, fence, plan, accounts)
    after = {
        "changes": [change.json_dict() for change in plan.changes],
        "live_edge": plan.live_edge_after,
        "fingerprint": plan.fingerprint_after,
    }
    before = json.loads(row.snapshot)
    record_progress(tx, row, "apply.switched", "switch", before=before, after=after, title=plan.title)
    return StepDone()


def restore(tx: Transaction, row: ApplyRow) -> StepDone:
    """Restore the snapshot of the freeze. The world stays closed."""
    fence = _held_fence(tx, row)
    _restore_snapshot(tx, row, fence)
    log_fence_change(tx, fence, "restore", row.run_id)
    record_progress(tx, row, "apply.restored", "restore", after=json.loads(row.snapshot))
    return StepDone()


def unfreeze(tx: Transaction, row: ApplyRow) -> FenceChange:
    """Accept orders again under a new epoch.

    Without a switch, the snapshot of the freeze is restored first.
    """
    fence = _held_fence(tx, row)
    if tx.session.get(ApplyStepRow, (row.world_id, row.run_id, "switch")) is None:
        _restore_snapshot(tx, row, fence)
    change = open_fence(tx, fence, row.run_id, newest_decision(tx.session, row.world_id))
    row.epoch_after = fence.epoch
    return _fence_change(change)


def conclude(tx: Transaction, row: ApplyRow, outcome: ApplyOutcome, reason: str) -> StepDone:
    """Record how the apply ended, which no order waits for: it is checked against nothing of this."""
    fence = tx.session.get_one(FenceRow, row.world_id)
    if outcome != "frozen" and fence.holder == row.run_id:
        raise RuntimeError(f"{row.run_id} would end as {outcome} and still holds {row.world_id}")
    row.outcome = outcome
    row.reason = reason[:_REASON_LENGTH]
    row.ended_at = utc_now()
    row.epoch_after = fence.epoch
    after = {"outcome": outcome, "reason": row.reason, "epoch": fence.epoch}
    record_progress(tx, row, "apply.ended", outcome, after=after, reason=row.reason)
    return StepDone()


def end_terminated(tx: Transaction, row: ApplyRow) -> StepDone:
    """Record the end of an apply whose workflow somebody terminated. A world that it holds stays closed.

    Without a switch, the snapshot of the freeze is restored first.
    """
    reason = f"its workflow was terminated in Temporal, at {row.state}"
    switched = tx.session.get(ApplyStepRow, (row.world_id, row.run_id, "switch")) is not None
    fence = locked_fence(tx, row.world_id)
    if fence.holder != row.run_id:
        return conclude(tx, row, "completed" if switched else "rolled_back", reason)
    if not switched:
        _restore_snapshot(tx, row, fence)
    done = "what it switched stands" if switched else "nothing was switched"
    stays = f"{reason}: {done}, and the world stays frozen: qmtl world resume {row.world_id}"
    return conclude(tx, row, "frozen", stays)


def _require_not_aborted(row: ApplyRow) -> None:
    """Raises QmtlError (E_APPLY_ABORTED) once an abort is stored, whether or not the workflow knows of it."""
    if row.aborted_by:
        raise QmtlError(
            "E_APPLY_ABORTED", f"aborted by {row.aborted_by}: {row.abort_reason}", "request another apply"
        )


def _fence_change(activation: ActivationEnvelope) -> FenceChange:
    return FenceChange(epoch=activation.epoch, sequence=activation.sequence, at=activation.ts)


def _require_not_restored(session: Session, row: ApplyRow) -> None:
    """Check that the run has not gone back already: a switch that was given up is never done later.

    Raises QmtlError (E_APPLY_RESTORED).
    """
    step = session.exec(_GOING_BACK, params={"world": row.world_id, "run": row.run_id}).first()
    if step is not None:
        raise QmtlError(
            "E_APPLY_RESTORED",
            f"{row.run_id} has restored {row.world_id} to the state before it, at its step {step}",
            "request another apply",
        )


def _held_fence(tx: Transaction, row: ApplyRow) -> FenceRow:
    """Lock the fence that the run holds. Raises QmtlError (E_WORLD_FROZEN) where it does not hold it."""
    fence = locked_fence(tx, row.world_id)
    if fence.holder != row.run_id:
        holder = fence.holder or "nobody"
        raise QmtlError(
            "E_WORLD_FROZEN",
            f"{row.run_id} does not hold {fence.world_id}: {holder} does",
            "check the apply that does",
        )
    return fence


def _set_allocations(
    tx: Transaction,
    fence: FenceRow,
    stored: Mapping[str, ActivationEnvelope],
    allocations: Mapping[str, StrategyAllocation],
    fingerprint: str,
    run_id: str,
) -> None:
    """Give strategies their allocations: the stage and weight that they trade with.

    `stored` are all activations of the world before (`stored_activations`). `fingerprint` is pinned for those
    that enter a stage.
    """
    changed: list[ActivationEnvelope] = []
    for strategy_id, after in sorted(allocations.items()):
        before = stored.get(strategy_id)
        mode = after.mode if after.active else "validate"
        etag = activation_etag(fence.world_id, strategy_id, after.active, after.weight, mode)
        if before is not None and before.etag == etag:
            continue
        envelope = ActivationEnvelope.model_validate(
            {
                "world_id": fence.world_id,
                "strategy_id": strategy_id,
                "side": before.side if before else "both",
                "active": after.active,
                "weight": after.weight,
                "effective_mode": mode,
                "dataset_fingerprint": fingerprint if after.active else "",
                "etag": etag,
                "run_id": run_id,
                "ts": datetime.now(UTC),
            }
        )
        changed.append(envelope)
    change_activations(tx, fence, changed, stored)


def _bind_queues(tx: Transaction, world_id: str, change: Change) -> None:
    """Create the strategy's queues in the domain that it enters.

    Its nodes run there, and stop where it leaves.
    """
    dag = stored_dag(tx.session, change.strategy_id)
    if dag is None:
        return
    for side, state in ((change.before, "stopped"), (change.after, "running")):
        domain = domain_of(side.mode)
        if not side.active or domain not in (Domain.DRYRUN, Domain.LIVE):
            continue
        if state == "running":
            SqlGraphStore.bind_queues(tx, world_id, domain.value, dag)
        set_node_states(tx, world_id, domain.value, tuple(node.node_id for node in dag.nodes), state)


def _flatten(tx: Transaction, fence: FenceRow, plan: ApplyPlan, accounts: Accounts) -> None:
    """Close what strategies hold in the domains that they leave, where the plan says so."""
    for domain, account in accounts.items() if plan.switch.flatten else ():
        leaving = [change.strategy_id for change in plan.changes if change.leaves is domain]
        begin_flattens(tx, fence, plan.run_id, {domain: account}, leaving)


def _restore_snapshot(tx: Transaction, row: ApplyRow, fence: FenceRow) -> None:
    snapshot = Snapshot.model_validate_json(row.snapshot)
    world = tx.session.get_one(WorldRow, row.world_id)
    stored = stored_activations(tx.session, row.world_id)
    _set_allocations(tx, fence, stored, snapshot.allocations, snapshot.fingerprint, row.run_id)
    closed_since = fence.edge_closings != snapshot.edge_closings
    set_live_edge(tx, fence, snapshot.live_edge and not closed_since, f"restored by {row.run_id}")
    pin_fingerprint(tx, world, snapshot.fingerprint)
