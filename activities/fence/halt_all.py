"""Halt many worlds at once. A world that cannot be halted delays the others by no more than a moment.

1. One transaction locks every fence that is free now. From then on these worlds accept no order. It halts
   them and commits. If it fails, each half of the worlds is halted in a transaction of its own, and so on.
2. Worlds whose fence or rows were not free are halted one by one, again and again while there is time.
   Another halt of all worlds may hold them, and has halted them when it ends.
3. What is left is named in the error.
"""

import time
from collections import defaultdict
from collections.abc import Sequence

from sqlmodel import col, select

from activities.fence.activations import entry_hashes
from activities.fence.halts import halt, halt_reason
from activities.fence.state import locked_fence
from activities.storage.database import Database
from activities.storage.tables import ActivationRow, FenceRow
from activities.storage.transactions import Transaction
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.errors import QmtlError

# Worlds of one transaction at most: SQLite limits the number of bound values in a statement.
_GROUP = 500

# Seconds to wait for each lock of one world: in the first attempt, and at most in the later ones, which share
# what time is left.
_SHORT_WAIT_S = 0.002
_WAIT_S = 0.1

# Seconds between two rounds of attempts.
_PAUSE_S = 0.01

# Seconds for repeated attempts. A halt of all worlds takes less than a second then, which is how long the
# command waits for a Gateway.
_WITHIN_S = 0.3

# Characters of an error that the report of a failed halt quotes.
_ERROR_LENGTH = 200


def halt_all(
    database: Database, worlds: Sequence[str], actor: str, reason: str, within_s: float = _WITHIN_S
) -> None:
    """Halt worlds. One that is halted already stays as it is, and one that cannot be halted stops no other.

    `within_s`: seconds in which worlds whose locks are held are tried again.

    Raises QmtlError: E_HALT_INCOMPLETE, naming the worlds that could not be halted, after all the others.
    """
    text = halt_reason(actor, reason)
    left: list[str] = []
    for start in range(0, len(worlds), _GROUP):
        left += _halt_together(database, worlds[start : start + _GROUP], actor, text)
    failures = _halt_each(database, left, actor, text, within_s)
    if failures:
        world_id, error = next(iter(failures.items()))
        raise QmtlError(
            "E_HALT_INCOMPLETE",
            f"{len(failures)} of {len(worlds)} worlds could not be halted: {', '.join(failures)}"[:1000]
            + f"; {world_id}: {error}",
            "stop the strategies of these worlds, then repeat the command",
        )


def _halt_together(database: Database, worlds: Sequence[str], actor: str, text: str) -> list[str]:
    """Halt worlds in one transaction, or in several where one fails. Returns those that are left."""
    try:
        with database.write(actor) as tx:
            halted = _halt_group(tx, worlds, text)
    except Exception:  # whatever one world's rows hold, the others are halted
        half = len(worlds) // 2
        if not half:
            return list(worlds)
        parts = (worlds[:half], worlds[half:])
        return [left for part in parts for left in _halt_together(database, part, actor, text)]
    return [world_id for world_id in worlds if world_id not in halted]


def _halt_group(tx: Transaction, worlds: Sequence[str], text: str) -> set[str]:
    """Halt the worlds whose fence and rows are free and can be read. Returns them."""
    tx.limit_lock_waits(_WAIT_S)
    free = [name.removeprefix("fence:") for name in tx.try_locks([f"fence:{name}" for name in worlds])]
    fences = {
        row.world_id: row
        for row in tx.session.exec(
            select(FenceRow).where(col(FenceRow.world_id).in_(free)).with_for_update(skip_locked=True)
        )
    }
    activations: defaultdict[str, list[ActivationRow]] = defaultdict(list)
    for row in tx.session.exec(select(ActivationRow).where(col(ActivationRow.world_id).in_(free))):
        activations[row.world_id].append(row)
    halted = set[str]()
    for world_id in sorted(fences):
        try:
            entries = entry_hashes(
                ActivationEnvelope.model_validate_json(row.body) for row in activations[world_id]
            )
        except ValueError:  # it is named when it is tried alone
            continue
        if not fences[world_id].halted:
            halt(tx, fences[world_id], text, entries)
        halted.add(world_id)
    return halted


def _halt_each(
    database: Database, worlds: Sequence[str], actor: str, text: str, within_s: float
) -> dict[str, str]:
    """Halt worlds one by one. Returns why, by world, for those that could not be halted."""
    failures, left = dict[str, str](), list(worlds)
    until, wait_s = time.monotonic() + within_s, _SHORT_WAIT_S  # short at first: others may be nearly free
    while left:
        held = list[str]()
        for world_id in left:
            error = _halt_one(database, world_id, actor, text, wait_s)
            if error is not None:
                failures[world_id] = " ".join(str(error).split())[:_ERROR_LENGTH]
                if isinstance(error, QmtlError) and error.code == "E_UNAVAILABLE":
                    held.append(world_id)
            else:
                failures.pop(world_id, None)
        left_s = until - time.monotonic()
        left = held if left_s > 0 else []
        wait_s = max(_SHORT_WAIT_S, min(_WAIT_S, left_s / max(len(left), 1)))
        if left:
            time.sleep(_PAUSE_S)
    return failures


def _halt_one(database: Database, world_id: str, actor: str, text: str, wait_s: float) -> Exception | None:
    """Halt a world; return the error if it could not be halted."""
    try:
        with database.write(actor) as tx:
            tx.limit_lock_waits(wait_s)
            fence = locked_fence(tx, world_id)
            if not fence.halted:
                halt(tx, fence, text)
    except Exception as error:  # whatever one world's rows hold, the others are halted
        return error
    return None
