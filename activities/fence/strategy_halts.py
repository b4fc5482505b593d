"""Halt one strategy of a world until an operator resumes it. The world's other strategies go on.

No decision, policy or apply lifts such a halt. The world's epoch stays, since orders of the other strategies
carry it.
"""

from datetime import UTC, datetime
from typing import Literal

from sqlmodel import Session, col, select

from activities.fence.activations import (
    activation_etag,
    activation_hashes,
    activations_of,
    sequenced_activation,
)
from activities.fence.cancelling import Selection, cancel_open
from activities.fence.halts import HALT_WAIT_S
from activities.fence.state import locked_fence, log_fence_change
from activities.storage.database import Database
from activities.storage.tables import BindingRow, FenceRow, StrategyHaltRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from qmtl_sdk.contracts.applies import StrategyHalt
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.references import one_strategy


class SqlStrategyHalts:
    """Halts of strategies. `strategy` is a name, a strategy_id, or 8 or more characters of its beginning."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def halt(
        self, world_id: str, strategy: str, actor: str, reason: str, wait_s: float = HALT_WAIT_S
    ) -> StrategyHalt:
        """Refuse every order of a strategy from now on. Idempotent: the first halt stands; returns it.

        Raises QmtlError: E_WORLD_UNKNOWN; E_STRATEGY_UNKNOWN where none or several strategies match;
        E_UNAVAILABLE as `SqlFenceStore.halt`.
        """
        with self._database.write(actor) as tx:
            tx.limit_lock_waits(wait_s)
            fence = locked_fence(tx, world_id)
            found = bound_strategy(tx.session, world_id, strategy)
            return _halt_of(halt_strategy(tx, fence, found.strategy_id, actor, reason), found.name)

    def resume(self, world_id: str, strategy: str, actor: str, reason: str) -> StrategyHalt:
        """Lift the halt of a strategy; return what was lifted. A halt of its world stays.

        Raises QmtlError: as `halt`; E_NOT_HALTED where the strategy is not halted.
        """
        with self._database.write(actor) as tx:
            fence = locked_fence(tx, world_id)
            found = bound_strategy(tx.session, world_id, strategy)
            row = tx.session.get(StrategyHaltRow, (world_id, found.strategy_id))
            if row is None:
                raise QmtlError(
                    "E_NOT_HALTED",
                    f"{found.name or found.strategy_id} is not halted in {world_id}",
                    "there is nothing to resume",
                )
            tx.session.delete(row)
            _record(tx, fence, row, "resume", reason)
            return _halt_of(row, found.name)


def halt_strategy(
    tx: Transaction, fence: FenceRow, strategy_id: str, actor: str, reason: str
) -> StrategyHaltRow:
    """Halt a strategy of a world whose fence the caller holds, unless it is halted already."""
    row = tx.session.get(StrategyHaltRow, (fence.world_id, strategy_id))
    if row is None:
        row = StrategyHaltRow(
            world_id=fence.world_id,
            strategy_id=strategy_id,
            reason=reason[:MAX_REASON],
            since=utc_now(),
            halted_by=actor,
        )
        tx.session.add(row)
        _record(tx, fence, row, "halt", row.reason)
    return row


def bound_strategy(session: Session, world_id: str, reference: str) -> BindingRow:
    """Find the strategy of a world that a reference means (`qmtl_sdk.contracts.references`).

    Raises QmtlError (E_STRATEGY_UNKNOWN) where none or several match.
    """
    bound = session.exec(
        select(BindingRow).where(BindingRow.world_id == world_id).order_by(col(BindingRow.seq))
    ).all()
    return one_strategy(reference, world_id, bound)


def _record(
    tx: Transaction, fence: FenceRow, halt: StrategyHaltRow, phase: Literal["halt", "resume"], reason: str
) -> None:
    """Write a halt, or its end, into the order log; audit it; publish the strategy's activation.

    A halt cancels the strategy's open orders, as one of the world does.
    """
    world_id, strategy_id = halt.world_id, halt.strategy_id
    log_fence_change(tx, fence, phase, strategy_id, reason, strategy_id)
    now, halted = datetime.now(UTC), phase == "halt"
    after: dict[str, object] = {"halted": halted, "reason": reason}
    if halted:
        which = Selection(strategies=[strategy_id])
        stopped = cancel_open(tx, fence, "its strategy was halted", fence.on_halt == "cancel", which)
        after |= stopped.model_dump()
    before = next(iter(activations_of(tx.session, world_id, strategy_id)), None)
    activation = (before or _inactive(world_id, strategy_id, now)).model_copy(
        update={"halted": halted, "phase": phase, "run_id": "", "ts": now}
    )
    entries = activation_hashes(tx.session, world_id)
    activation = sequenced_activation(tx, fence, activation, entries)
    tx.record(
        RecordedChange(
            "strategy.halted" if halted else "strategy.resumed",
            world_id,
            strategy_id,
            before={"halted": not halted},
            after=after,
            event="activation_updated",
            data=activation.json_dict(),
        )
    )


def _inactive(world_id: str, strategy_id: str, now: datetime) -> ActivationEnvelope:
    """Build the activation of a strategy that was never judged, so that its halt has one to stand in."""
    etag = activation_etag(world_id, strategy_id, False, 0.0, "validate")
    return ActivationEnvelope(
        world_id=world_id,
        strategy_id=strategy_id,
        active=False,
        weight=0.0,
        effective_mode="validate",
        etag=etag,
        run_id="",
        ts=now,
    )


def _halt_of(row: StrategyHaltRow, name: str) -> StrategyHalt:
    return StrategyHalt.model_validate({**row.model_dump(exclude={"world_id"}), "name": name})
