"""Requests for rebalancings: plan and store them, find them again, and what people say about them."""

import json
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlmodel import Session, col, select

from activities.allocation.store import plan_of_request
from activities.applies.own_requests import issuers_of
from activities.messages.apply import AbortRequest
from activities.messages.rebalancing import RebalancingBrief
from activities.rebalancing.present import require_marks, require_present
from activities.rebalancing.rows import (
    REBALANCING,
    SUMMARIES,
    body_of,
    end_at_once,
    plan_of,
    record,
    run_row,
    status_of,
    summary_row,
    title_of,
    worlds_of,
)
from activities.rebalancing.trades import require_executable, trades_of
from activities.storage.database import Database
from activities.storage.readable import readable
from activities.storage.tables import PolicyRow, RebalancingRow
from activities.storage.transactions import Transaction, utc_now, utc_text
from activities.worlds.specs import world_of, world_row
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan
from qmtl_sdk.contracts.rebalance_runs import (
    RebalanceApply,
    RebalanceStatus,
    RebalanceTrade,
)

# Pages of runs that are read for one list, where most are not shown.
_PAGES = 20

# Reasons that a run names which changes nothing.
_REASONS = 5

# Rows of a plan that the Temporal UI shows.
_ROWS = 40


class SqlRebalancings:
    """Stores requests for rebalancings with their plans, and finds them again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def trades(self, requested: RebalanceApply) -> tuple[RebalanceTrade, ...]:
        """Return the trades that a request leads to. Nothing is stored. Raises as `request`."""
        with self._database.read() as session:
            plan = self._plan(session, requested)
        return tuple(trade.shown() for trade in trades_of(plan, requested.request, requested.run_id))

    def request(
        self, requested: RebalanceApply, actor: str, token_id: str = "", issuers: Sequence[str] = ()
    ) -> RebalanceStatus:
        """Store a request with its plan. `issuers`: of the actor's token, where that may be forgotten.

        A run that changes no share and no position is completed at once. Idempotent by run id.

        Raises QmtlError: E_RUN_ID_REUSED for another body, E_REBALANCE_MODE, E_ETAG,
        E_WORLD_UNKNOWN, E_WORLD_ARCHIVED, and what the planner raises.
        """
        with self._database.read() as session:  # what takes long, before the lock is held
            known = session.get(RebalancingRow, requested.run_id)
            plan = None if known else self._plan(session, requested)
            stored = plan.model_dump_json() if plan else ""
            plan_hash = plan.content_hash if plan else ""
        body = requested.model_dump_json()
        with self._database.write(actor) as tx:
            tx.lock("allocation")
            known = tx.session.get(RebalancingRow, requested.run_id)
            if known is not None:
                if known.body != body:
                    raise QmtlError(
                        "E_RUN_ID_REUSED",
                        f"run id {requested.run_id} is that of another rebalancing",
                        "choose another run id, or send what was sent before",
                    )
                return status_of(tx.session, known)
            assert plan is not None  # runs are not removed while they are requested
            require_present(tx.session, requested.request, plan)
            worlds = [item.world_id for item in requested.request.worlds]
            needed = approvals_needed(tx.session, worlds)
            row = RebalancingRow(
                run_id=requested.run_id,
                body=body,
                plan=stored,
                plan_etag=plan.etag,
                plan_hash=plan_hash,
                worlds=json.dumps(worlds),
                title=title_of(requested),
                requested_by=actor,
                requested_issuers=json.dumps([*issuers, *issuers_of(tx.session, token_id)]),
                requested_at=utc_now(),
                state="requested",
                approvals=needed.required,
                roles=json.dumps(needed.roles),
                approve_within_s=needed.within_s,
                secret=secrets.token_hex(16),
            )
            tx.session.add(row)
            about = {"reason": requested.reason, "etag": plan.etag, "plan_hash": plan_hash}
            record(tx, row, "rebalancing.requested", {**about, "worlds": _shares(requested)})
            if _changes_nothing(requested, plan):
                end_at_once(tx, row, _why_nothing(plan))
        return self.find(requested.run_id)

    def find(self, run_id: str, whole: bool = True) -> RebalanceStatus:
        """Read one run. Raises QmtlError (E_REBALANCE_UNKNOWN)."""
        with self._database.read() as session:
            if whole:
                return status_of(session, run_row(session, run_id))
            return status_of(session, summary_row(session, run_id), whole=False)

    def roles(self, run_id: str) -> tuple[str, ...]:
        """Return the roles of which one is needed, in each world, to approve. Raises as `find`."""
        with self._database.read() as session:
            return tuple(json.loads(summary_row(session, run_id).roles))

    def newest(
        self, limit: int = 20, is_shown: Callable[[Sequence[str]], bool] = lambda _: True
    ) -> list[RebalanceStatus]:
        """List runs, newest first, without their plans and trades. `is_shown` decides by a run's worlds."""
        found, before = list[RebalanceStatus](), "~"  # after every time
        newest = col(RebalancingRow.requested_at).desc()
        with self._database.read() as session:
            for _ in range(_PAGES):
                query = SUMMARIES.where(RebalancingRow.requested_at < before).order_by(newest).limit(limit)
                rows = session.exec(query).all()
                shown = [row for row in rows if is_shown(worlds_of(row))]
                found += readable(shown, lambda row: status_of(session, row, whole=False))
                if len(found) >= limit or len(rows) < limit:
                    break
                before = rows[-1].requested_at
        return found[:limit]

    def unfinished(self) -> list[tuple[str, AbortRequest | None]]:
        """List the runs that have not ended, oldest first, each with its abort if it was aborted."""
        columns = (RebalancingRow.run_id, RebalancingRow.aborted_by, RebalancingRow.abort_reason)
        query = select(*columns).where(col(RebalancingRow.ended_at).is_(None))
        with self._database.read() as session:
            rows = session.exec(query.order_by(RebalancingRow.requested_at)).all()
        return [
            (run_id, AbortRequest(run_id=run_id, actor=by, reason=reason) if by else None)
            for run_id, by, reason in rows
        ]

    def brief(self, run_id: str) -> RebalancingBrief:
        """Read what the workflow of a run needs. Raises QmtlError (E_REBALANCE_UNKNOWN)."""
        with self._database.read() as session:
            row = run_row(session, run_id)
            body, plan = body_of(row), plan_of(row)
            return RebalancingBrief(
                title=row.title,
                reason=body.reason,
                requested_by=row.requested_by,
                worlds=tuple(worlds_of(row)),
                rows=tuple(_text_rows(plan)),
                approvals_required=row.approvals,
                roles=tuple(json.loads(row.roles)),
                approve_within_s=row.approve_within_s,
                time_limit_s=body.time_limit_s,
                begun_at=datetime.fromisoformat(row.locked_at) if row.locked_at else None,
            )

    def await_approval(self, run_id: str, until: datetime) -> datetime:
        """Record until when a run waits for approvals. The first limit stands; returns it."""
        with self._database.write(REBALANCING) as tx:
            row = run_row(tx.session, run_id, fresh=True)
            if row.approve_until:
                return datetime.fromisoformat(row.approve_until)
            row.approve_until = utc_text(until)
            if row.state == "requested":
                row.state = "approval"
            tx.session.add(row)
            record(tx, row, "rebalancing.waiting", {"until": row.approve_until})
            return until

    def record_abort(self, run_id: str, actor: str, reason: str) -> AbortRequest | None:
        """Store who aborts a run. The first stands; None where it has ended. From now on it orders nothing.

        Raises QmtlError: E_REBALANCE_UNKNOWN; E_REBALANCE_ENDED where it ended otherwise.
        """
        with self._database.write(actor) as tx:
            tx.lock("allocation")
            row = run_row(tx.session, run_id, fresh=True)
            if row.ended_at is not None:
                if row.outcome == "aborted":
                    return None
                raise QmtlError(
                    "E_REBALANCE_ENDED",
                    f"{run_id} has ended: {row.outcome}",
                    "there is nothing to abort; another rebalancing takes its shares back",
                )
            if not row.aborted_by:
                row.aborted_by, row.abort_reason = actor, reason
                tx.session.add(row)
            record(tx, row, "rebalancing.abort_requested", {"reason": reason})
            return AbortRequest(run_id=run_id, actor=row.aborted_by, reason=row.abort_reason)

    def _plan(self, session: Session, requested: RebalanceApply) -> RebalancePlan:
        require_executable(requested.request)
        for change in requested.request.worlds:
            world_of(world_row(session, change.world_id)).require_active()
        plan = plan_of_request(session, requested.request)
        if requested.etag:
            plan.require_etag(requested.etag)
        require_present(session, requested.request, plan)
        require_marks(session, requested.request)
        return plan


class ApprovalsNeeded(NamedTuple):
    """How many people must approve, who may, and how long a run waits for them (seconds)."""

    required: int
    roles: list[str]
    within_s: float


def approvals_needed(session: Session, worlds: Sequence[str]) -> ApprovalsNeeded:
    """Return what the strictest of the worlds asks for.

    A world that allows live asks for as many as its policy does before a strategy goes live.
    """
    required, roles, within_s = 0, {"operator", "owner", "author"}, float("inf")
    for world_id in worlds:
        world = world_of(world_row(session, world_id))
        row = session.get(PolicyRow, (world_id, world.policy_version)) if world.policy_version else None
        gating = (Policy.model_validate_json(row.body) if row else Policy()).gating_policy
        live = world.spec.allow_live
        required = max(required, gating.approvals.live if live else gating.approvals.required)
        roles &= set(gating.approvals.roles)
        within_s = min(within_s, gating.approvals.expires)
    return ApprovalsNeeded(required, sorted(roles or {"owner"}), within_s)


def _text_rows(plan: RebalancePlan) -> list[tuple[str, str, str, str, str, str]]:
    """Return the first rows of a plan for people: world, symbol, from, to, notional, why not."""
    rows = [
        (
            delta.world_id,
            f"{delta.symbol} ({delta.venue})",
            f"{delta.from_quantity:f}",
            f"{delta.to_quantity:f}",
            f"{delta.notional:.2f}",
            "",
        )
        for delta in plan.deltas[:_ROWS]
    ]
    rows += [
        (item.world_id, f"{item.symbol} ({item.venue})", "", "", f"{item.notional:.2f}", item.detail)
        for item in plan.dropped[: max(_ROWS - len(rows), 0)]
    ]
    more = len(plan.deltas) + len(plan.dropped) - len(rows)
    return [*rows, *([(f"and {more} more", "", "", "", "", "")] if more else [])]


def _changes_nothing(requested: RebalanceApply, plan: RebalancePlan) -> bool:
    """Return whether a run changes no share and no position.

    A share without a position changes the sizes of targets that come later: people approve that.
    """
    changes = requested.request.worlds
    new_shares = any(item.before != item.after or item.strategies for item in changes)
    return not new_shares and not trades_of(plan, requested.request, requested.run_id)


def _why_nothing(plan: RebalancePlan) -> str:
    details = [f"{item.world_id} {item.symbol}: {item.detail}" for item in plan.dropped[:_REASONS]]
    return "; ".join(["no share and no position changes", *details])


def _shares(requested: RebalanceApply) -> dict[str, list[str]]:
    return {item.world_id: [f"{item.before:f}", f"{item.after:f}"] for item in requested.request.worlds}


def start_of(tx: Transaction, run_id: str) -> RebalancingRow:
    """Take the locks of a run's step: allocations, and its worlds. Returns its row as it is now."""
    tx.lock("allocation")
    row = run_row(tx.session, run_id, fresh=True)
    for world_id in worlds_of(row):
        tx.lock(f"world:{world_id}")
    return row
