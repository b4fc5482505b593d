"""Dead letters: events that the relay could not publish. An operator lists, retries or drops them."""

from collections.abc import Collection

from sqlalchemy import delete, exists, func
from sqlmodel import Session, col, select

from activities.storage.chain import OUTSIDE_WORLDS
from activities.storage.database import Database
from activities.storage.tables import DeadLetterRow, OutboxRow
from activities.storage.transactions import RecordedChange, Transaction, subject_hash
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import DeadLetter, kind_of


class SqlDeadLetters:
    """The dead letters of a database, by the number of their outbox row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self, after: int, limit: int, worlds: Collection[str] | None = None) -> list[DeadLetter]:
        """List dead letters after a number, oldest first; only those of `worlds` where it is given."""
        query = (
            select(DeadLetterRow, OutboxRow)
            .where(col(DeadLetterRow.seq) == col(OutboxRow.seq), DeadLetterRow.seq > after)
            .order_by(col(DeadLetterRow.seq))
            .limit(limit)
        )
        if worlds is not None:
            query = query.where(col(OutboxRow.world_id).in_(worlds))
        with self._database.read() as session:
            return [_dead_letter(letter, row) for letter, row in session.exec(query)]

    def find(self, number: int) -> DeadLetter:
        """Read one. Raises QmtlError (E_DEAD_LETTER_UNKNOWN)."""
        with self._database.read() as session:
            return _find(session, number)[0]

    def count(self, most: int) -> int:
        """Count the dead letters, up to `most`."""
        rows = select(DeadLetterRow.seq).limit(most).subquery()
        with self._database.read() as session:
            return session.exec(select(func.count()).select_from(rows)).one()

    def retry(self, number: int, actor: str) -> DeadLetter:
        """Give a dead letter back to the relay.

        Raises QmtlError: E_DEAD_LETTER_UNKNOWN; E_DEAD_LETTER_SUPERSEDED where a later event of its subject
        was published: published after it, this one would be taken for the newer.
        """
        with self._database.write(actor) as tx:
            letter, row = _remove(tx, number, "retried")
            tx.lock_chain(
                row.world_id or OUTSIDE_WORLDS
            )  # no later event is recorded between the check and the commit
            if _superseded(tx.session, row):
                raise QmtlError(
                    "E_DEAD_LETTER_SUPERSEDED",
                    f"a later event of {row.subject[:60]} was published after dead letter {number}",
                    f"qmtl events dead-letters drop {number}",
                )
            row.published_at = None
            tx.session.add(row)
        return letter

    def drop(self, number: int, actor: str) -> DeadLetter:
        """Give a dead letter up: its event is never published. Raises QmtlError (E_DEAD_LETTER_UNKNOWN)."""
        with self._database.write(actor) as tx:
            return _remove(tx, number, "dropped")[0]


def _remove(tx: Transaction, number: int, action: str) -> tuple[DeadLetter, OutboxRow]:
    """Delete a dead letter and record that. Returns it with its outbox row."""
    tx.lock(f"dead_letter:{number}")
    found, row = _find(tx.session, number)
    tx.session.connection().execute(delete(DeadLetterRow).where(col(DeadLetterRow.seq) == number))
    tx.record(RecordedChange(f"dead_letter.{action}", row.world_id, str(number), before=found.json_dict()))
    return found, row


def _find(session: Session, number: int) -> tuple[DeadLetter, OutboxRow]:
    """Read a dead letter with its outbox row."""
    letter = session.get(DeadLetterRow, number)
    row = session.get(OutboxRow, number)
    if letter is None or row is None:
        raise QmtlError(
            "E_DEAD_LETTER_UNKNOWN",
            f"there is no dead letter {number}",
            "qmtl events dead-letters list shows them",
        )
    return _dead_letter(letter, row), row


def _superseded(session: Session, row: OutboxRow) -> bool:
    """Return whether a later event of the same topic and subject was published or waits.

    A look-up in the index for each type of its events, which are few; of the events there may be millions.
    """
    of_subject = (
        OutboxRow.key == row.key,
        OutboxRow.subject_hash == subject_hash(row.subject),
    )
    is_dead = exists().where(col(DeadLetterRow.seq) == col(OutboxRow.seq))
    event_type: str | None = ""
    while True:
        types = select(func.min(OutboxRow.type)).where(*of_subject, col(OutboxRow.type) > event_type)
        event_type = session.exec(types).one()
        if event_type is None:
            return False
        if kind_of(event_type) != kind_of(row.type):
            continue
        later = select(OutboxRow.seq).where(
            *of_subject, OutboxRow.type == event_type, col(OutboxRow.seq) > row.seq, ~is_dead
        )
        if session.exec(later.limit(1)).first() is not None:
            return True


def _dead_letter(letter: DeadLetterRow, row: OutboxRow) -> DeadLetter:
    return DeadLetter.model_validate(
        {
            "number": letter.seq,
            "type": row.type,
            "world_id": row.world_id,
            "subject": row.subject,
            "reason": letter.reason,
            "at": letter.at,
        }
    )
