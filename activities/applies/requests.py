"""Requests for applies: plan them, store them, list them."""

import json
from collections.abc import Callable, Sequence

from sqlalchemy import func
from sqlmodel import Session, col, select

from activities.applies.context import PlanningContext, Snapshot
from activities.applies.own_requests import issuers_of
from activities.applies.plan import plan_apply, plan_rollback
from activities.applies.planning_context import planning_context, world_stamp
from activities.applies.status import apply_row, running_apply, stands, status_of
from activities.applies.steps import begin_step
from activities.fence.rules import OPEN
from activities.fence.state import present_fence
from activities.messages.apply import AbortRequest
from activities.storage.database import Database
from activities.storage.readable import readable
from activities.storage.tables import ApplyRow, ApplyStepRow, FenceRow
from activities.storage.transactions import RecordedChange, utc_now
from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.plans import ApplyPlan


class SqlApplyRequests:
    """Plans applies, stores requests with their plans, and finds them again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def plan(self, world_id: str, request: ApplyRequest, actor: str) -> ApplyPlan:
        """Plan an apply without storing anything. Raises QmtlError as `plan_apply` does."""
        with self._database.read() as session:
            return self._plan(session, world_id, request, actor)

    def request(
        self,
        world_id: str,
        request: ApplyRequest,
        actor: str,
        check: Callable[[ApplyPlan], None] = lambda _: None,
        issuers: Sequence[str] = (),
    ) -> ApplyStatus:
        """Store a request with its plan. `check` may refuse the plan by raising.

        `issuers` are those of the request's token: none of them approves it.

        Idempotent by run_id. Raises QmtlError: as `plan_apply`, E_RUN_ID_REUSED, E_APPLY_RUNNING,
        E_WORLD_FROZEN.
        """
        # With SQLite, orders of all worlds wait for whoever writes: the plan is made before, and made again
        # where the world has changed since.
        with self._database.read() as session:
            if (known := _known(session, world_id, request)) is not None:
                return status_of(session, known)
            _require_free(session, world_id)
            planned_from = world_stamp(session, world_id)
            plan = self._plan(session, world_id, request, actor)
        check(plan)
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            if (known := _known(tx.session, world_id, request)) is not None:
                return status_of(tx.session, known)
            fence = _require_free(tx.session, world_id)
            if world_stamp(tx.session, world_id) != planned_from:
                plan = self._plan(tx.session, world_id, request, actor)
                check(plan)
            newest = select(func.max(ApplyRow.seq)).where(ApplyRow.world_id == world_id)
            seq = (tx.session.exec(newest).one() or 0) + 1
            row = ApplyRow(
                world_id=world_id,
                run_id=request.run_id,
                seq=seq,
                body=request.model_dump_json(),
                plan=plan.model_dump_json(),
                requested_by=actor,
                requested_issuers=json.dumps(list(issuers)),
                requested_at=utc_now(),
                state="requested",
                epoch_before=fence.epoch,
            )
            tx.session.add(row)
            begin_step(tx, row, "requested")
            data = {"world_id": world_id, "run_id": request.run_id, "state": "requested", "title": plan.title}
            tx.record(
                RecordedChange(
                    "apply.requested",
                    world_id,
                    request.run_id,
                    after={"request": request.json_dict(), "plan": plan.json_dict()},
                    correlation_id=request.run_id,
                    data=data,
                )
            )
            return status_of(tx.session, row)

    def issuers(self, token_id: str) -> tuple[str, ...]:
        """Return everybody who issued the token of a request, or theirs."""
        with self._database.read() as session:
            return tuple(issuers_of(session, token_id))

    def planning_context(self, world_id: str) -> PlanningContext:
        """Read the world as the planner does. Raises QmtlError: E_WORLD_UNKNOWN, E_POLICY_MISSING."""
        with self._database.read() as session:
            return planning_context(session, world_id)

    def _plan(self, session: Session, world_id: str, request: ApplyRequest, actor: str) -> ApplyPlan:
        context = planning_context(session, world_id)
        if not request.rollback_of:
            return plan_apply(request, actor, context)
        earlier = session.get(ApplyRow, (world_id, request.rollback_of))
        if earlier is None:
            raise QmtlError(
                "E_APPLY_UNKNOWN",
                f"there is no apply {request.rollback_of} in {world_id}",
                "qmtl world applies W lists them",
            )
        if earlier.ended_at is None or not stands(session, earlier):
            raise QmtlError(
                "E_APPLY_EMPTY",
                f"{request.rollback_of} has changed nothing: it is {earlier.outcome or earlier.state}",
                "roll back one whose switch stands: qmtl world applies W",
            )
        return plan_rollback(request, actor, context, Snapshot.model_validate_json(earlier.snapshot))

    def find(self, world_id: str, run_id: str) -> ApplyStatus:
        """Read one apply. Raises QmtlError (E_APPLY_UNKNOWN)."""
        with self._database.read() as session:
            return status_of(session, apply_row(session, world_id, run_id))

    def newest(self, world_id: str, limit: int = 20) -> list[ApplyStatus]:
        """List the applies of a world, newest first."""
        with self._database.read() as session:
            rows = session.exec(
                select(ApplyRow)
                .where(ApplyRow.world_id == world_id)
                .order_by(col(ApplyRow.seq).desc())
                .limit(limit)
            ).all()
            return readable(rows, lambda row: status_of(session, row))

    def unfinished(self) -> list[tuple[str, str]]:
        """List world and run of every apply that has not ended, oldest first."""
        with self._database.read() as session:
            return [
                (row.world_id, row.run_id)
                for row in session.exec(
                    select(ApplyRow).where(col(ApplyRow.ended_at).is_(None)).order_by(ApplyRow.requested_at)
                )
            ]

    def unfinished_aborts(self) -> list[tuple[str, AbortRequest]]:
        """List the stored aborts of applies that have not ended, each with its world."""
        with self._database.read() as session:
            rows = session.exec(
                select(ApplyRow).where(col(ApplyRow.ended_at).is_(None), ApplyRow.aborted_by != "")
            ).all()
            return [
                (row.world_id, AbortRequest(run_id=row.run_id, actor=row.aborted_by, reason=row.abort_reason))
                for row in rows
            ]

    def record_abort(self, world_id: str, run_id: str, actor: str, reason: str) -> AbortRequest:
        """Store and audit who requests an abort, before the workflow gets it. The first stands; returns it.

        From now on the apply can neither freeze nor switch. An abort without such an entry went straight to
        Temporal.

        Raises QmtlError: E_APPLY_UNKNOWN, E_APPLY_ENDED, E_APPLY_SWITCHED.
        """
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            row = apply_row(tx.session, world_id, run_id)
            if row.ended_at is not None:
                raise QmtlError(
                    "E_APPLY_ENDED",
                    f"{run_id} has ended: {row.outcome}",
                    "there is nothing to abort; qmtl world rollback W --to RUN_ID undoes what it did",
                )
            if tx.session.get(ApplyStepRow, (world_id, run_id, "switch")) is not None:
                raise QmtlError(
                    "E_APPLY_SWITCHED",
                    f"{run_id} can't be aborted any more: it is at {row.state}",
                    "qmtl world rollback W --to RUN_ID undoes what it did",
                )
            if not row.aborted_by:
                row.aborted_by, row.abort_reason = actor, reason
                tx.session.add(row)
            tx.record(
                RecordedChange(
                    "apply.abort_requested", world_id, run_id, after={"reason": reason}, correlation_id=run_id
                )
            )
            return AbortRequest(run_id=run_id, actor=row.aborted_by, reason=row.abort_reason)


def _known(session: Session, world_id: str, request: ApplyRequest) -> ApplyRow | None:
    """Find what was requested under the run's id. Raises QmtlError (E_RUN_ID_REUSED)."""
    known = session.get(ApplyRow, (world_id, request.run_id))
    if known is not None and known.body != request.model_dump_json():
        raise QmtlError(
            "E_RUN_ID_REUSED",
            f"run {request.run_id} was requested before with another body",
            "give another apply another run_id",
        )
    return known


def _require_free(session: Session, world_id: str) -> FenceRow:
    """Return the fence of a world that no apply holds. Its state changes only under the world's lock.

    Raises QmtlError: E_APPLY_RUNNING, E_WORLD_FROZEN.
    """
    running = running_apply(session, world_id)
    if running is not None:
        raise QmtlError(
            "E_APPLY_RUNNING",
            f"{running.run_id} of {running.requested_by} is running in {world_id}, at {running.state}",
            "wait for it, or abort it",
            run_id=running.run_id,
        )
    fence = present_fence(session, world_id)
    if fence.state != OPEN:
        raise QmtlError(
            "E_WORLD_FROZEN",
            f"{world_id} is {fence.state}: {fence.holder} left it in that state",
            "check that run; then qmtl world resume W",
        )
    return fence
