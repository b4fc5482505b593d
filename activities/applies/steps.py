"""The steps of an apply in the database.

Each step is one transaction. It is done once for (world, run, step), and a repetition returns the first
result: a step that is repeated after a crash must not act on what the world has become meanwhile. Only the
run that holds the world's fence may change it.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TypeVar

from sqlalchemy import bindparam
from sqlmodel import col, select

from activities.applies import transitions
from activities.applies.status import apply_unknown, running_apply
from activities.decisions.sql import newest_decision
from activities.fence.activations import halts_of
from activities.fence.halts import lift_halt
from activities.fence.rules import OPEN
from activities.fence.state import locked_fence, open_fence
from activities.messages.apply import ApprovalWait, FenceChange, StepDone
from activities.order_settings import DEFAULT_ACCOUNTS, Accounts
from activities.storage.database import Database
from activities.storage.tables import ApplyRow, ApplyStepRow
from activities.storage.transactions import Transaction, table_of, utc_now
from activities.worlds.specs import world_of, world_row
from qmtl_sdk.contracts.applies import ApplyOutcome
from qmtl_sdk.contracts.errors import QmtlError

StepT = TypeVar("StepT", bound=StepDone)
Transition = Callable[[Transaction, ApplyRow], StepT]

# Seconds that a step waits for each of its two locks. After 5 s its activity is tried again.
_LOCK_WAIT_S = 2.0

_SAME_RUN = (
    (col(ApplyStepRow.world_id) == ApplyRow.world_id)
    & (col(ApplyStepRow.run_id) == ApplyRow.run_id)
    & (col(ApplyStepRow.step) == bindparam("step"))
)

_STEP = table_of(ApplyStepRow)

# A run, and the result of one of its steps if that was done.
_RUN_AND_STEP = (
    select(ApplyRow, ApplyStepRow.result)
    .join(ApplyStepRow, _SAME_RUN, isouter=True)
    .where(ApplyRow.world_id == bindparam("world"), ApplyRow.run_id == bindparam("run"))
)


class SqlApplySteps:
    """Does each step of an apply once. The activities of ApplyWorkflow call it."""

    def __init__(self, database: Database, accounts: Accounts = DEFAULT_ACCOUNTS) -> None:
        """`accounts` hold the positions that a rollback may close."""
        self._database = database
        self._accounts = accounts

    def await_approval(self, world_id: str, run_id: str, until: datetime) -> ApprovalWait:
        """Record that the apply waits for approvals, and until when. The first limit stands."""
        wait = partial(transitions.await_approval, until=until)
        return self._once(world_id, run_id, "approval", ApprovalWait, wait)

    def freeze(self, world_id: str, run_id: str) -> FenceChange:
        """Close the world for this run, under a new epoch.

        Raises QmtlError: E_WORLD_FROZEN where it is not open; E_ETAG where it changed since the plan was
        made.
        """
        return self._once(world_id, run_id, "freeze", FenceChange, transitions.freeze)

    def drain(self, world_id: str, run_id: str) -> StepDone:
        """Go from frozen to draining: open orders may finish, new ones are still refused."""
        return self._once(world_id, run_id, "drain", StepDone, transitions.drain)

    def switch(self, world_id: str, run_id: str) -> StepDone:
        """Change everything that the plan changes, or nothing.

        Raises QmtlError: E_ETAG, E_LIVE_NOT_ALLOWED; E_APPLY_RESTORED once the run has restored or unfrozen
        the world without a switch.
        """
        switch = partial(transitions.switch, accounts=self._accounts)
        return self._once(world_id, run_id, "switch", StepDone, switch)

    def restore(self, world_id: str, run_id: str) -> StepDone:
        """Restore what the freeze found. The world stays closed."""
        return self._once(world_id, run_id, "restore", StepDone, transitions.restore)

    def unfreeze(self, world_id: str, run_id: str) -> FenceChange:
        """Open the world under a new epoch, with the activations of the newest decision."""
        return self._once(world_id, run_id, "unfreeze", FenceChange, transitions.unfreeze)

    def conclude(self, world_id: str, run_id: str, outcome: ApplyOutcome, reason: str) -> StepDone:
        """Record how the apply ended. Only `frozen` leaves the world closed."""
        end = partial(transitions.conclude, outcome=outcome, reason=reason)
        return self._once(world_id, run_id, "end", StepDone, end)

    def end_terminated(self, world_id: str, run_id: str) -> StepDone:
        """Record the end of an apply whose workflow was terminated. No later step of it is done."""
        return self._once(world_id, run_id, "end", StepDone, transitions.end_terminated)

    def resume(self, world_id: str, actor: str, reason: str) -> list[str]:
        """Lift a halt, and open a world that an apply left frozen. Returns what was lifted.

        Raises QmtlError: E_WORLD_UNKNOWN, E_WORLD_ARCHIVED, E_WORLD_OPEN, E_APPLY_RUNNING.
        """
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            fence = locked_fence(tx, world_id)
            world_of(world_row(tx.session, world_id)).require_active()
            running = running_apply(tx.session, world_id)
            left_frozen = fence.state != OPEN and running is None
            lifted = [f"halt ({fence.halted})"] if fence.halted else []
            if left_frozen:
                lifted.append(f"{fence.state} by {fence.holder}")
            if not lifted and fence.state != OPEN and running is not None:
                raise QmtlError(
                    "E_APPLY_RUNNING",
                    f"{running.run_id} is running in {world_id}, at {running.state}, and opens it by itself",
                    "wait for it, or abort it",
                    run_id=running.run_id,
                )
            if not lifted:
                halted = ", ".join(item.label for item in halts_of(tx.session, world_id))
                raise QmtlError(
                    "E_WORLD_OPEN",
                    f"{world_id} is neither halted nor frozen",
                    f"resume one of its halted strategies with -s STRATEGY: {halted}"
                    if halted
                    else "there is nothing to resume",
                )
            if left_frozen:
                decision = newest_decision(tx.session, world_id)
                open_fence(tx, fence, fence.holder, decision, lift=True, reason=reason)
            else:
                lift_halt(tx, fence, reason)
            return lifted

    def _once(
        self, world_id: str, run_id: str, step: str, result_type: type[StepT], do: Transition[StepT]
    ) -> StepT:
        """Do a step if it was not done before, and return its result."""
        with self._database.write("apply") as tx:
            tx.limit_lock_waits(_LOCK_WAIT_S, f"world:{world_id}")
            keys = {"world": world_id, "run": run_id, "step": step}
            found = tx.session.execute(_RUN_AND_STEP, keys).first()
            if found is None:
                raise apply_unknown(world_id, run_id)
            row, done = found
            if done is not None:
                return result_type.model_validate_json(done)
            if row.ended_at is not None:
                raise QmtlError(
                    "E_APPLY_ENDED", f"{run_id} has ended: {row.outcome}", "request another apply"
                )
            if step != "end":
                row.state = step
            tx.session.add(row)
            with tx.session.no_autoflush:  # orders wait meanwhile, so its changes are written together
                result = do(tx, row)
            begin_step(tx, row, step, result)
            return result


def begin_step(tx: Transaction, row: ApplyRow, step: str, result: StepDone | None = None) -> None:
    """Store a step with its result. The step before has ended."""
    tx.connection.execute(
        _STEP.insert(),
        {
            "world_id": row.world_id,
            "run_id": row.run_id,
            "step": step,
            "started_at": utc_now(),
            "result": (result or StepDone()).model_dump_json(),
        },
    )
