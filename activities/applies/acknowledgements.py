"""Acknowledgements of an apply's freeze and unfreeze: who acknowledged in time, and who is missing."""

from sqlmodel import Session

from activities.applies.status import running_apply
from activities.fence.acknowledgements import acknowledgements, record_ack
from activities.messages.apply import FenceChange
from activities.storage.database import Database
from activities.storage.tables import ApplyStepRow

# The step whose acknowledgements an apply waits for, by the step that it is at.
_AWAITED_STEP = {"freeze": "freeze", "drain": "freeze", "unfreeze": "unfreeze"}


class SqlApplyAcks:
    """Stores acknowledgements, and tells which ones a running apply still waits for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ack(self, world_id: str, sequence: int, holder: str, kind: str) -> bool:
        """Store that `holder` acknowledged the change with this sequence.

        Returns whether that was in time.
        """
        with self._database.write(holder, bookkeeping=True) as tx:
            late = not _awaited(tx.session, world_id, sequence)
            record_ack(tx, world_id, sequence, holder, kind, late)
            return not late

    def missing(self, world_id: str, change: FenceChange, phase: str) -> tuple[str, ...]:
        """Name the holders that have not acknowledged a change."""
        with self._database.read() as session:
            acks = acknowledgements(session, world_id, change, phase)
            return tuple(item.holder for item in acks if item.at is None)


def _awaited(session: Session, world_id: str, sequence: int) -> bool:
    """Check whether a running apply published this sequence and still waits for acknowledgements."""
    row = running_apply(session, world_id)
    step = _AWAITED_STEP.get(row.state) if row else None
    if row is None or step is None:
        return False
    done = session.get(ApplyStepRow, (world_id, row.run_id, step))
    return done is not None and FenceChange.model_validate_json(done.result).sequence == sequence
