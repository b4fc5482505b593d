"""Applies in the database: their request, each step, approvals, acknowledgements.

Every step is one transaction, done once for ever for (world, run, step) and answered the same again: a step that is repeated after a crash must not act on what the world has
become meanwhile. Only the run that holds the world's fence may change it.
"""

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import bindparam, func, update
from sqlmodel import Session, col, select

from activities.graph.sql import SqlGraphStore
from activities.storage.database import Database, Transaction, utc_now
from activities.storage.tables import (
    AckRow,
    ApplyRow,
    ApplyStepRow,
    ApprovalRow,
    EdgeOverrideRow,
    FenceRow,
    GatewayRow,
    GraphStrategyRow,
    PolicyRow,
    SessionRow,
    WorldNodeRow,
    WorldRow,
)
from activities.worlds.gate import (
    DRAINING,
    FROZEN,
    LIVE_EDGE,
    OPEN,
    activation_hashes,
    entry_hashes,
    halt,
    locked_fence,
    log_fence_change,
    publish_gate_change,
)
from activities.worlds.plan import plan_apply, plan_rollback
from activities.worlds.situation import PlanningContext, Snapshot, allocation_of
from activities.worlds.sql import (
    activation_etag,
    activations_of,
    apply_decision,
    change_activation,
    newest_decision,
    newest_evidence,
    world_of,
)
from activities.worlds.store import GateChange, StepDone
from qmtl_sdk.contracts.applies import (
    Acknowledgement,
    ApplyPlan,
    ApplyRequest,
    ApplyStatus,
    Approval,
    ApprovalBody,
    Change,
    Step,
    StrategyAllocation,
    plan_etag,
)
from qmtl_sdk.contracts.dag import Dag
from qmtl_sdk.contracts.domains import Domain, domain_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.worlds import ActivationEnvelope

StepT = TypeVar("StepT", bound=StepDone)
_SAME_RUN = (
    (col(ApplyStepRow.world_id) == ApplyRow.world_id)
    & (col(ApplyStepRow.run_id) == ApplyRow.run_id)
    & (col(ApplyStepRow.step) == bindparam("step"))
)
_RUN_AND_STEP = (
    select(ApplyRow, ApplyStepRow.answer)
    .join(ApplyStepRow, _SAME_RUN, isouter=True)
    .where(ApplyRow.world_id == bindparam("world"), ApplyRow.run_id == bindparam("run"))
)
"""A run, and what was answered when a step of it was done, if it was."""


class SqlApplyStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    # the request

    def plan(self, world_id: str, request: ApplyRequest, actor: str) -> ApplyPlan:
        """What the apply would do. Nothing is written. Raises as `plan_apply`."""
        with self._database.read() as session:
            return self._planned(session, world_id, request, actor)

    def request(
        self,
        world_id: str,
        request: ApplyRequest,
        actor: str,
        agree: Callable[[ApplyPlan], None] = lambda _: None,
    ) -> ApplyStatus:
        """Keep the request with its plan, unless `agree` raises at it. Raises QmtlError: as `plan_apply`, E_RUN_ID_REUSED, E_APPLY_RUNNING, E_WORLD_FROZEN."""
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            known = tx.session.get(ApplyRow, (world_id, request.run_id))
            if known is not None:
                if known.body != request.model_dump_json():
                    raise QmtlError(
                        "E_RUN_ID_REUSED",
                        f"run {request.run_id} was asked for with another body",
                        "give another apply another run_id",
                    )
                return _status(tx.session, known)
            running = _running(tx.session, world_id)
            if running is not None:
                raise QmtlError(
                    "E_APPLY_RUNNING",
                    f"{running.run_id} of {running.requested_by} is under way in {world_id}, at {running.state}",
                    "wait for it, or abort it",
                    run_id=running.run_id,
                )
            fence = locked_fence(tx, world_id)
            if fence.state != OPEN:
                raise QmtlError(
                    "E_WORLD_FROZEN",
                    f"{world_id} is {fence.state}: {fence.holder} left it so",
                    "look at that run; then qmtl world resume W",
                )
            plan = self._planned(tx.session, world_id, request, actor)
            agree(plan)
            seq = (tx.session.exec(select(func.max(ApplyRow.seq))).one() or 0) + 1
            row = ApplyRow(
                world_id=world_id,
                run_id=request.run_id,
                seq=seq,
                body=request.model_dump_json(),
                plan=plan.model_dump_json(),
                requested_by=actor,
                requested_at=utc_now(),
                state="requested",
                epoch_before=fence.epoch,
            )
            tx.session.add(row)
            self._begin(tx, row, "requested")
            data = {"world_id": world_id, "run_id": request.run_id, "state": "requested", "title": plan.title}
            tx.record(
                "apply.requested",
                world_id,
                request.run_id,
                after={"request": request.json_dict(), "plan": plan.json_dict()},
                correlation_id=request.run_id,
                data=data,
            )
            return _status(tx.session, row)

    def situation(self, world_id: str) -> PlanningContext:
        """The world as the planner sees it. Raises QmtlError: E_WORLD_UNKNOWN, E_POLICY_MISSING."""
        with self._database.read() as session:
            return planning_context(session, world_id)

    def _planned(self, session: Session, world_id: str, request: ApplyRequest, actor: str) -> ApplyPlan:
        situation = planning_context(session, world_id)
        if not request.rollback_of:
            return plan_apply(request, actor, situation)
        earlier = session.get(ApplyRow, (world_id, request.rollback_of))
        if earlier is None:
            raise QmtlError(
                "E_APPLY_UNKNOWN",
                f"there is no apply {request.rollback_of} in {world_id}",
                "qmtl world applies W lists them",
            )
        if earlier.outcome != "completed":
            raise QmtlError(
                "E_APPLY_EMPTY",
                f"{request.rollback_of} has changed nothing: it is {earlier.outcome or earlier.state}",
                "roll back one that is completed",
            )
        return plan_rollback(request, actor, situation, Snapshot.model_validate_json(earlier.snapshot))

    def find(self, world_id: str, run_id: str) -> ApplyStatus:
        with self._database.read() as session:
            return _status(session, _row(session, world_id, run_id))

    def newest(self, world_id: str, limit: int = 20) -> list[ApplyStatus]:
        """Newest first."""
        with self._database.read() as session:
            rows = session.exec(
                select(ApplyRow)
                .where(ApplyRow.world_id == world_id)
                .order_by(col(ApplyRow.seq).desc())
                .limit(limit)
            ).all()
            return [_status(session, row) for row in rows]

    def unfinished(self) -> list[tuple[str, str]]:
        """World and run of every apply that has not ended."""
        with self._database.read() as session:
            return [
                (row.world_id, row.run_id)
                for row in session.exec(
                    select(ApplyRow).where(col(ApplyRow.ended_at).is_(None)).order_by(col(ApplyRow.seq))
                )
            ]

    # approvals

    def vote(
        self, world_id: str, subject: str, actor: str, verdict: str, body: ApprovalBody, approval_id: str
    ) -> Approval:
        """Keep what an authenticated person said of an apply. Saying it twice is saying it once. Raises QmtlError: E_APPLY_UNKNOWN, E_APPLY_ENDED, E_ETAG, E_APPROVAL_OWN."""
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            row = _row(tx.session, world_id, subject)
            said = tx.session.exec(
                select(ApprovalRow).where(
                    ApprovalRow.world_id == world_id,
                    ApprovalRow.subject == subject,
                    ApprovalRow.actor == actor,
                    ApprovalRow.via == "gateway",
                )
            ).first()
            if said is not None and said.verdict == verdict:
                return _approval(said)
            if row.ended_at is not None or row.state not in ("requested", "approval"):
                raise QmtlError(
                    "E_APPLY_ENDED",
                    f"{subject} waits for no approval any more: it is {row.outcome or f'at {row.state}'}",
                    "qmtl world applies W lists what is under way",
                )
            plan = ApplyPlan.model_validate_json(row.plan)
            if body.etag and body.etag != plan.etag:
                raise QmtlError(
                    "E_ETAG",
                    "that is the etag of another plan",
                    "look at the plan as it is now, then say it again",
                    etag=plan.etag,
                )
            if verdict == "approve" and actor == row.requested_by:
                raise QmtlError(
                    "E_APPROVAL_OWN",
                    f"{actor} has asked for {subject}, and nobody approves their own request",
                    "another person approves it (on this machine, to try it: --as ana)",
                )
            return self._keep(
                tx,
                ApprovalRow(
                    approval_id=approval_id,
                    world_id=world_id,
                    subject=subject,
                    actor=actor,
                    verdict=verdict,
                    reason=body.reason,
                    via="gateway",
                    counts=True,
                    at=utc_now(),
                ),
            )

    def direct(
        self, world_id: str, subject: str, actor: str, verdict: str, reason: str, approval_id: str
    ) -> Approval:
        """Keep what came as a signal straight to Temporal, in the name that it claims. Whether it counts, the plan says."""
        with self._database.write("temporal") as tx:
            tx.lock(f"world:{world_id}")
            done = tx.session.get(ApprovalRow, approval_id)
            if done is not None:
                return _approval(done)
            row = _row(tx.session, world_id, subject)
            stage = ApplyPlan.model_validate_json(row.plan).approval
            counts = (
                stage.direct_signals and bool(actor) and (verdict == "reject" or actor != row.requested_by)
            )
            return self._keep(
                tx,
                ApprovalRow(
                    approval_id=approval_id,
                    world_id=world_id,
                    subject=subject,
                    actor=actor,
                    verdict=verdict,
                    reason=reason[:500],
                    via="direct",
                    counts=counts,
                    at=utc_now(),
                ),
            )

    @staticmethod
    def _keep(tx: Transaction, row: ApprovalRow) -> Approval:
        tx.session.add(row)
        approval = _approval(row)
        data = {
            "world_id": row.world_id,
            "run_id": row.subject,
            "actor": row.actor,
            "verdict": row.verdict,
            "via": row.via,
            "counts": row.counts,
        }
        tx.record(
            "approval.given",
            row.world_id,
            row.subject,
            after=approval.json_dict(),
            correlation_id=row.subject,
            data=data,
        )
        return approval

    def abort_asked(self, world_id: str, run_id: str, actor: str, reason: str) -> None:
        """Keep who asked for an abort, before the workflow is told. One that stands in no such entry was sent straight to Temporal. Raises QmtlError: E_APPLY_UNKNOWN, E_APPLY_ENDED."""
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            row = _row(tx.session, world_id, run_id)
            if row.ended_at is not None:
                raise QmtlError(
                    "E_APPLY_ENDED",
                    f"{run_id} has ended: {row.outcome}",
                    "there is nothing to abort; qmtl world rollback W --to RUN_ID takes back what it did",
                )
            tx.record("apply.abort_asked", world_id, run_id, after={"reason": reason}, correlation_id=run_id)

    def untaken(self) -> list[tuple[str, str, Approval]]:
        """Approvals that their apply has not heard of yet: world, run, approval."""
        with self._database.read() as session:
            query = select(ApprovalRow, ApplyRow).where(
                ApprovalRow.via == "gateway",
                col(ApprovalRow.taken_at).is_(None),
                ApplyRow.world_id == ApprovalRow.world_id,
                ApplyRow.run_id == ApprovalRow.subject,
                col(ApplyRow.ended_at).is_(None),
            )
            return [(row.world_id, row.subject, _approval(row)) for row, _ in session.exec(query)]

    def taken(self, world_id: str, subject: str) -> tuple[Approval, ...]:
        """All that was said of an apply, noted as heard."""
        with self._database.write("apply", bookkeeping=True) as tx:
            fresh = (
                col(ApprovalRow.world_id) == world_id,
                col(ApprovalRow.subject) == subject,
                col(ApprovalRow.taken_at).is_(None),
            )
            tx.session.connection().execute(update(ApprovalRow).where(*fresh).values(taken_at=utc_now()))
            return _approvals(tx.session, world_id, subject)

    # the steps

    def await_approval(self, world_id: str, run_id: str) -> StepDone:
        def do(tx: Transaction, row: ApplyRow, _: FenceRow) -> StepDone:
            _progress(
                tx,
                row,
                "apply.waiting",
                "approval",
                after={"state": "approval"},
                title=ApplyPlan.model_validate_json(row.plan).title,
            )
            return StepDone()

        return self._once(world_id, run_id, "approval", StepDone, do)

    def freeze(self, world_id: str, run_id: str) -> GateChange:
        """Close the world for this run. Raises QmtlError: E_WORLD_FROZEN where it is not open, E_ETAG where it has changed since the plan was made."""

        def do(tx: Transaction, row: ApplyRow, fence: FenceRow) -> GateChange:
            plan = ApplyPlan.model_validate_json(row.plan)
            if fence.state != OPEN:
                raise QmtlError(
                    "E_WORLD_FROZEN", f"{world_id} is {fence.state} by {fence.holder}", "resume it first"
                )
            with (
                tx.session.no_autoflush
            ):  # orders wait for this transaction: what it changes is written together
                world = tx.session.get_one(WorldRow, world_id)
                there = _unchanged(tx.session, world, plan, fence.live_edge)
            row.snapshot = Snapshot(
                standpoints={item.strategy_id: allocation_of(item) for item in there},
                live_edge=fence.live_edge,
                fingerprint=world.pinned_fingerprint,
            ).model_dump_json()
            row.epoch_before = fence.epoch
            before = {"state": fence.state, "epoch": fence.epoch}
            fence.state, fence.holder, fence.epoch = FROZEN, run_id, fence.epoch + 1
            if plan.live_edge_before and plan.freeze.close_live_edge:
                _edge(tx, fence, False, f"closed by {run_id}")
            log_fence_change(tx, fence, "freeze", run_id)
            after, entries = (
                {"state": fence.state, "epoch": fence.epoch, "live_edge": fence.live_edge},
                entry_hashes(there),
            )
            told = publish_gate_change(
                tx,
                world,
                fence,
                "freeze",
                run_id,
                action="apply.frozen",
                before=before,
                after=after,
                requires_ack=True,
                entries=entries,
            )
            return GateChange(epoch=fence.epoch, sequence=told.sequence, at=told.ts)

        return self._once(world_id, run_id, "freeze", GateChange, do)

    def drain(self, world_id: str, run_id: str) -> StepDone:
        """From frozen to draining: open orders may end, new ones are still refused."""

        def do(tx: Transaction, row: ApplyRow, fence: FenceRow) -> StepDone:
            _held(fence, run_id)
            fence.state = DRAINING
            log_fence_change(tx, fence, "drain", run_id)
            publish_gate_change(
                tx,
                tx.session.get_one(WorldRow, world_id),
                fence,
                "freeze",
                run_id,
                action="apply.draining",
                before={"state": FROZEN},
                after={"state": DRAINING, "epoch": fence.epoch},
            )
            return StepDone()

        return self._once(world_id, run_id, "drain", StepDone, do)

    def switch(self, world_id: str, run_id: str) -> StepDone:
        """Change everything that the plan changes, or nothing. Raises QmtlError: E_ETAG, E_LIVE_NOT_ALLOWED."""

        def do(tx: Transaction, row: ApplyRow, fence: FenceRow) -> StepDone:
            _held(fence, run_id)
            plan = ApplyPlan.model_validate_json(row.plan)
            world = tx.session.get_one(WorldRow, world_id)
            _unchanged(tx.session, world, plan, plan.live_edge_before)  # the freeze has closed it
            if not fence.allow_live and (
                plan.live_edge_after
                or any(
                    change.after.active and change.after.mode == "live" and change.goes_up
                    for change in plan.changes
                )
            ):
                raise QmtlError(
                    "E_LIVE_NOT_ALLOWED",
                    f"world {world_id} does not allow live any more",
                    "an operator allows it with: qmtl world allow-live W",
                )
            self._stand(tx, world, {change.strategy_id: change.after for change in plan.changes}, run_id)
            for change in plan.changes:
                self._bind(tx, world_id, change)
            _edge(
                tx,
                fence,
                plan.live_edge_after,
                f"{'opened' if plan.live_edge_after else 'closed'} by {run_id}",
            )
            world.pinned_fingerprint = plan.fingerprint_after
            tx.session.add(world)
            log_fence_change(tx, fence, "switch", run_id)
            after = {
                "changes": [change.json_dict() for change in plan.changes],
                "live_edge": plan.live_edge_after,
                "fingerprint": plan.fingerprint_after,
            }
            _progress(
                tx,
                row,
                "apply.switched",
                "switch",
                before=json.loads(row.snapshot),
                after=after,
                title=plan.title,
            )
            return StepDone()

        return self._once(world_id, run_id, "switch", StepDone, do)

    def restore(self, world_id: str, run_id: str) -> StepDone:
        """Put back what the freeze found. The world stays closed."""

        def do(tx: Transaction, row: ApplyRow, fence: FenceRow) -> StepDone:
            _held(fence, run_id)
            self._put_back(tx, row, fence)
            log_fence_change(tx, fence, "restore", run_id)
            _progress(tx, row, "apply.restored", "restore", after=json.loads(row.snapshot))
            return StepDone()

        return self._once(world_id, run_id, "restore", StepDone, do)

    def unfreeze(self, world_id: str, run_id: str) -> GateChange:
        """Open the world again, under a new epoch, as the newest decision has it."""

        def do(tx: Transaction, row: ApplyRow, fence: FenceRow) -> GateChange:
            _held(fence, run_id)
            if tx.session.get(ApplyStepRow, (world_id, run_id, "switch")) is None:
                self._put_back(tx, row, fence)
            told = self._open(tx, fence, run_id)
            row.epoch_after = fence.epoch
            return GateChange(epoch=fence.epoch, sequence=told.sequence, at=told.ts)

        return self._once(world_id, run_id, "unfreeze", GateChange, do)

    def conclude(self, world_id: str, run_id: str, outcome: str, reason: str) -> StepDone:
        """The apply has ended."""

        def do(tx: Transaction, row: ApplyRow, fence: FenceRow) -> StepDone:
            if outcome != "frozen" and fence.holder == run_id:
                raise RuntimeError(f"{run_id} would end as {outcome} and still holds {world_id}")
            row.outcome, row.reason, row.ended_at, row.epoch_after = (
                outcome,
                reason[:1000],
                utc_now(),
                fence.epoch,
            )
            _progress(
                tx,
                row,
                "apply.ended",
                outcome,
                after={"outcome": outcome, "reason": row.reason, "epoch": fence.epoch},
                reason=row.reason,
            )
            return StepDone()

        return self._once(world_id, run_id, "end", StepDone, do)

    def halt(self, world_id: str, actor: str, reason: str) -> bool:
        """Close the world's gate at once, whatever else is under way, until someone resumes it; False where it was halted already."""
        with self._database.write(actor) as tx:
            fence = locked_fence(tx, world_id)
            if fence.halted:
                return False
            halt(tx, fence, f"{actor}: {reason}" if reason else f"by {actor}")
            return True

    def resume(self, world_id: str, actor: str, reason: str) -> list[str]:
        """Lift a halt, and open a world that an apply has left frozen; what was lifted. Raises QmtlError: E_WORLD_ARCHIVED, E_WORLD_OPEN, E_APPLY_RUNNING."""
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            fence = locked_fence(tx, world_id)
            world_of(tx.session.get_one(WorldRow, world_id)).require_active()
            running = _running(tx.session, world_id)
            lifted = []
            if fence.halted:
                lifted.append(f"halt ({fence.halted})")
            if fence.state != OPEN and running is None:
                lifted.append(f"{fence.state} by {fence.holder}")
            if not lifted and fence.state != OPEN and running is not None:
                raise QmtlError(
                    "E_APPLY_RUNNING",
                    f"{running.run_id} is under way in {world_id}, at {running.state}, and opens it by itself",
                    "wait for it, or abort it",
                    run_id=running.run_id,
                )
            if not lifted:
                raise QmtlError(
                    "E_WORLD_OPEN", f"{world_id} is neither halted nor frozen", "there is nothing to resume"
                )
            before = {"halted": fence.halted, "state": fence.state, "epoch": fence.epoch}
            fence.halted = ""
            if fence.state != OPEN and running is None:
                self._open(tx, fence, fence.holder, before=before, reason=reason)
            else:
                fence.epoch += 1
                log_fence_change(tx, fence, "resume", world_id, reason)
                world = tx.session.get_one(WorldRow, world_id)
                publish_gate_change(
                    tx,
                    world,
                    fence,
                    "resume",
                    "",
                    action="world.resumed",
                    before=before,
                    after={"halted": "", "state": fence.state, "epoch": fence.epoch, "reason": reason},
                )
            return lifted

    # who has heard

    def ack(self, world_id: str, sequence: int, holder: str, kind: str) -> bool:
        """Note that someone has heard of the change with this sequence; whether that was in time."""
        with self._database.write(holder, bookkeeping=True) as tx:
            late = not self._awaited(tx.session, world_id, sequence)
            tx.insert_new(
                [
                    AckRow(
                        world_id=world_id,
                        sequence=sequence,
                        holder=holder,
                        kind=kind,
                        at=utc_now(),
                        late=late,
                    )
                ]
            )
            return not late

    def missing_acks(self, world_id: str, told: GateChange, phase: str) -> tuple[str, ...]:
        with self._database.read() as session:
            return tuple(
                item.holder
                for item in _acks(session, world_id, told.sequence, phase, told.at)
                if item.at is None
            )

    @staticmethod
    def _awaited(session: Session, world_id: str, sequence: int) -> bool:
        """Whether the apply that is under way told this sequence and still waits for who has heard."""
        row = _running(session, world_id)
        told = {"freeze": "freeze", "drain": "freeze", "unfreeze": "unfreeze"}.get(row.state) if row else None
        step = session.get(ApplyStepRow, (world_id, row.run_id, told)) if row and told else None
        return step is not None and GateChange.model_validate_json(step.answer).sequence == sequence

    def beat(self, gateway_id: str, lease_s: float) -> None:
        """A Gateway serves this store for so long from now."""
        with self._database.write(gateway_id, bookkeeping=True) as tx:
            until = (datetime.now(UTC) + timedelta(seconds=lease_s)).isoformat(timespec="microseconds")
            tx.upsert(GatewayRow(gateway_id=gateway_id, expires_at=until))

    def gone(self, gateway_id: str) -> None:
        with self._database.write(gateway_id, bookkeeping=True) as tx:
            row = tx.session.get(GatewayRow, gateway_id)
            if row is not None:
                tx.session.delete(row)

    # pieces of the steps

    def _once(
        self,
        world_id: str,
        run_id: str,
        step: str,
        answer_type: type[StepT],
        do: Callable[[Transaction, ApplyRow, FenceRow], StepT],
    ) -> StepT:
        """Do a step if it was not done before; its answer."""
        with self._database.write("apply") as tx:
            tx.lock(f"world:{world_id}")
            found = tx.session.execute(
                _RUN_AND_STEP, {"world": world_id, "run": run_id, "step": step}
            ).first()
            if found is None:
                raise _unknown(world_id, run_id)
            row, done = found
            if done is not None:
                return answer_type.model_validate_json(done)
            if row.ended_at is not None:
                raise QmtlError(
                    "E_APPLY_ENDED", f"{run_id} has ended: {row.outcome}", "ask for another apply"
                )
            fence = locked_fence(tx, world_id)
            if step != "end":
                row.state = step
            tx.session.add(row)
            answer = do(tx, row, fence)
            self._begin(tx, row, step, answer)
            return answer

    @staticmethod
    def _begin(tx: Transaction, row: ApplyRow, step: str, answer: StepDone | None = None) -> None:
        """The step before has ended, this one begins."""
        now = utc_now()
        earlier = (
            col(ApplyStepRow.world_id) == row.world_id,
            col(ApplyStepRow.run_id) == row.run_id,
            col(ApplyStepRow.ended_at).is_(None),
        )
        tx.session.connection().execute(update(ApplyStepRow).where(*earlier).values(ended_at=now))
        tx.session.add(
            ApplyStepRow(
                world_id=row.world_id,
                run_id=row.run_id,
                step=step,
                started_at=now,
                ended_at=now if step == "end" else None,
                answer=(answer or StepDone()).model_dump_json(),
            )
        )

    @staticmethod
    def _stand(tx: Transaction, world: WorldRow, wanted: dict[str, StrategyAllocation], run_id: str) -> None:
        """Bring strategies to where they shall stand."""
        there = {item.strategy_id: item for item in activations_of(tx.session, world.world_id)}
        entries = activation_hashes(tx.session, world.world_id)
        for strategy_id, after in sorted(wanted.items()):
            before = there.get(strategy_id)
            mode = after.mode if after.active else "validate"
            etag = activation_etag(world.world_id, strategy_id, after.active, after.weight, mode)
            if before is not None and before.etag == etag:
                continue
            base = {
                "world_id": world.world_id,
                "strategy_id": strategy_id,
                "side": before.side if before else "both",
            }
            envelope = ActivationEnvelope.model_validate(
                {
                    **base,
                    "active": after.active,
                    "weight": after.weight,
                    "effective_mode": mode,
                    "etag": etag,
                    "run_id": run_id,
                    "ts": datetime.now(UTC),
                }
            )
            change_activation(tx, world, envelope, before, entries)

    @staticmethod
    def _bind(tx: Transaction, world_id: str, change: Change) -> None:
        """A strategy that trades has its queues in the domain that it comes to, and its nodes run there; in the one that it leaves they stop."""
        found = tx.session.get(GraphStrategyRow, change.strategy_id)
        if found is None:
            return
        dag, now = Dag.model_validate_json(found.dag), utc_now()
        for side, state in ((change.before, "stopped"), (change.after, "running")):
            domain = domain_of(side.mode)
            if side.active and domain in (Domain.DRYRUN, Domain.LIVE):
                if state == "running":
                    SqlGraphStore.bind_queues(tx, world_id, domain.value, dag)
                for node in dag.nodes:
                    at = {"world_id": world_id, "node_id": node.node_id, "execution_domain": domain.value}
                    there = tx.session.get(WorldNodeRow, tuple(at.values())) or WorldNodeRow(
                        **at, eval_key="", state=state, updated_at=now
                    )
                    there.state, there.updated_at = state, now
                    tx.session.add(there)

    def _put_back(self, tx: Transaction, row: ApplyRow, fence: FenceRow) -> None:
        snapshot, world = (
            Snapshot.model_validate_json(row.snapshot),
            tx.session.get_one(WorldRow, row.world_id),
        )
        self._stand(tx, world, snapshot.standpoints, row.run_id)
        _edge(tx, fence, snapshot.live_edge, f"put back by {row.run_id}")
        world.pinned_fingerprint = snapshot.fingerprint
        tx.session.add(world)

    @staticmethod
    def _open(
        tx: Transaction, fence: FenceRow, run_id: str, before: dict[str, Any] | None = None, reason: str = ""
    ) -> ActivationEnvelope:
        """(Any: what the audit trail says of before.)"""
        world = tx.session.get_one(WorldRow, fence.world_id)
        before = before or {"state": fence.state, "epoch": fence.epoch}
        fence.state, fence.holder, fence.epoch = OPEN, "", fence.epoch + 1
        decision = newest_decision(tx.session, fence.world_id)
        if decision is not None:
            apply_decision(tx, world, decision, run_id)
        log_fence_change(tx, fence, "unfreeze", run_id, reason)
        return publish_gate_change(
            tx,
            world,
            fence,
            "unfreeze",
            run_id,
            action="apply.unfrozen",
            before=before,
            after={"state": OPEN, "epoch": fence.epoch, "live_edge": fence.live_edge, "reason": reason},
            requires_ack=True,
        )


def planning_context(session: Session, world_id: str) -> PlanningContext:
    """The world as the planner sees it. Raises QmtlError: E_WORLD_UNKNOWN, E_POLICY_MISSING."""
    row, fence = session.get(WorldRow, world_id), session.get(FenceRow, world_id)
    if row is None or fence is None:
        raise QmtlError("E_WORLD_UNKNOWN", f"there is no world {world_id!r}", "qmtl world list prints them")
    policy = session.get(PolicyRow, (world_id, row.policy_version)) if row.policy_version else None
    if policy is None:
        raise QmtlError(
            "E_POLICY_MISSING", f"world {world_id} has no policy", "add one: qmtl world policy add W FILE"
        )
    return PlanningContext(
        world=world_of(row),
        policy=Policy.model_validate_json(policy.body),
        decision=newest_decision(session, world_id),
        activations=tuple(activations_of(session, world_id)),
        evidence={candidate.strategy_id: candidate for candidate in newest_evidence(session, world_id)},
        live_edge=fence.live_edge,
        now=datetime.now(UTC),
    )


def _running(session: Session, world_id: str) -> ApplyRow | None:
    """The apply that is under way in a world: at most one."""
    return session.exec(
        select(ApplyRow).where(ApplyRow.world_id == world_id, col(ApplyRow.ended_at).is_(None))
    ).first()


def _progress(
    tx: Transaction,
    row: ApplyRow,
    action: str,
    state: str,
    *,
    before: object = None,
    after: object,
    **data: str,
) -> None:
    """Record what an apply has come to, and tell of it."""
    told = {"world_id": row.world_id, "run_id": row.run_id, "state": state, **data}
    tx.record(
        action,
        row.world_id,
        row.run_id,
        before=before,
        after=after,
        correlation_id=row.run_id,
        event="apply.state",
        data=told,
    )


def _unchanged(
    session: Session, world: WorldRow, plan: ApplyPlan, live_edge: bool
) -> list[ActivationEnvelope]:
    """The world's activations. Raises QmtlError (E_ETAG) where the world is no longer what the plan was made from."""
    there = activations_of(session, plan.world_id)
    now = plan_etag(
        [(item.strategy_id, item.etag) for item in there],
        world.pinned_fingerprint,
        live_edge,
        world.policy_version,
    )
    if now != plan.etag:
        raise QmtlError(
            "E_ETAG",
            f"{plan.world_id} has changed since the plan was made: its activations, its policy, or the edge to live",
            "ask for a new apply",
            etag=now,
        )
    return there


def _held(fence: FenceRow, run_id: str) -> None:
    if fence.holder != run_id:
        raise QmtlError(
            "E_WORLD_FROZEN",
            f"{run_id} does not hold {fence.world_id}: {fence.holder or 'nobody'} does",
            "look at the apply that does",
        )


def _edge(tx: Transaction, fence: FenceRow, active: bool, reason: str) -> None:
    """The edge from backtest to live, as the world's graph and the fence have it."""
    if fence.live_edge == active:
        return
    fence.live_edge = active
    tx.session.add(fence)
    tx.upsert(
        EdgeOverrideRow(
            world_id=fence.world_id,
            src=LIVE_EDGE[0],
            dst=LIVE_EDGE[1],
            active=active,
            reason=reason,
            updated_at=utc_now(),
        )
    )


def _row(session: Session, world_id: str, run_id: str) -> ApplyRow:
    row = session.get(ApplyRow, (world_id, run_id))
    if row is None:
        raise _unknown(world_id, run_id)
    return row


def _unknown(world_id: str, run_id: str) -> QmtlError:
    return QmtlError(
        "E_APPLY_UNKNOWN",
        f"there is no apply {run_id[:80]!r} in {world_id[:64]}",
        "qmtl world applies W lists them",
    )


def _status(session: Session, row: ApplyRow) -> ApplyStatus:
    steps = session.exec(
        select(ApplyStepRow)
        .where(ApplyStepRow.world_id == row.world_id, ApplyStepRow.run_id == row.run_id)
        .order_by(col(ApplyStepRow.started_at))
    ).all()
    acks: list[Acknowledgement] = []
    for step in steps:
        if step.step in ("freeze", "unfreeze"):
            told = GateChange.model_validate_json(step.answer)
            acks += _acks(session, row.world_id, told.sequence, step.step, told.at)
    return ApplyStatus.model_validate(
        {
            "world_id": row.world_id,
            "run_id": row.run_id,
            "state": row.outcome or row.state,
            "outcome": row.outcome or None,
            "reason": row.reason,
            "requested_by": row.requested_by,
            "requested_at": row.requested_at,
            "ended_at": row.ended_at,
            "epoch_before": row.epoch_before,
            "epoch_after": row.epoch_after,
            "plan": ApplyPlan.model_validate_json(row.plan),
            "approvals": _approvals(session, row.world_id, row.run_id),
            "steps": [
                Step(
                    name=step.step,
                    started=datetime.fromisoformat(step.started_at),
                    ended=datetime.fromisoformat(step.ended_at) if step.ended_at else None,
                )
                for step in steps
                if step.step != "end"
            ],
            "acks": acks,
        }
    )


def _acks(session: Session, world_id: str, sequence: int, phase: str, at: datetime) -> list[Acknowledgement]:
    """Who should hear of a change told at `at`, and who has said that they did: sessions and Gateways that were there then and still are, and whoever else has spoken."""
    said = {
        row.holder: row
        for row in session.exec(
            select(AckRow).where(AckRow.world_id == world_id, AckRow.sequence == sequence)
        )
    }
    moment, now = at.astimezone(UTC).isoformat(timespec="microseconds"), utc_now()
    there = select(SessionRow.session_id).where(
        SessionRow.world_id == world_id,
        col(SessionRow.ended_at).is_(None),
        SessionRow.opened_at <= moment,
        SessionRow.expires_at >= now,
    )
    holders = dict.fromkeys(session.exec(there), "session")
    holders |= dict.fromkeys(
        session.exec(select(GatewayRow.gateway_id).where(GatewayRow.expires_at >= now)), "gateway"
    )
    holders |= {holder: row.kind for holder, row in said.items()}
    found = []
    for holder, kind in sorted(holders.items()):
        row = said.get(holder)
        found.append(
            Acknowledgement.model_validate(
                {
                    "sequence": sequence,
                    "phase": phase,
                    "kind": kind,
                    "holder": holder,
                    "at": row.at if row else None,
                    "late": bool(row and row.late),
                }
            )
        )
    return found


def _approvals(session: Session, world_id: str, subject: str) -> tuple[Approval, ...]:
    rows = session.exec(
        select(ApprovalRow)
        .where(ApprovalRow.world_id == world_id, ApprovalRow.subject == subject)
        .order_by(col(ApprovalRow.at))
    )
    return tuple(_approval(row) for row in rows)


def _approval(row: ApprovalRow) -> Approval:
    return Approval.model_validate(
        {
            "approval_id": row.approval_id,
            "actor": row.actor,
            "verdict": row.verdict,
            "reason": row.reason,
            "via": row.via,
            "counts": row.counts,
            "at": datetime.fromisoformat(row.at),
        }
    )


def new_approval_id() -> str:
    return f"approval:{uuid.uuid4().hex}"
