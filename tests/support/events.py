"""Events of the tests."""

import uuid
from datetime import UTC, datetime
from typing import Any

from activities.storage.database import Database
from activities.storage.transactions import RecordedChange
from qmtl_sdk.contracts.events import CloudEvent


def event(
    subject: str = "s",
    number: int = 0,
    world: str = "w",
    kind: str = "policy_updated",
    key: str = "",
    **data: Any,
) -> CloudEvent:
    found = key or uuid.uuid4().hex
    return CloudEvent(
        id=found,
        source="/test",
        type=kind,
        subject=subject,
        time=datetime.now(UTC),
        worldid=world,
        partitionkey=world,
        idempotencykey=found,
        data={"world_id": world, "version": number, **data},
    )


def record_change(
    database: Database,
    subject: str,
    number: int,
    world: str = "equities",
    kind: str = "policy_updated",
    **data: Any,
) -> None:
    """A change of the store that says only this."""
    with database.write("test") as tx:
        tx.record(
            RecordedChange(
                "test.told", world, subject, event=kind, data={"world_id": world, "version": number, **data}
            )
        )
