"""Dead letters at the command: shown, retried, dropped."""

import uuid
from pathlib import Path

import httpx

from activities.storage.database import Database
from activities.storage.opening import open_database
from activities.storage.tables import OutboxRow
from tests.support import ROOT
from tests.support.command import Person
from tests.support.machine import wait_for


def write_unpublishable_event(database: Database) -> None:
    with database.write("test", bookkeeping=True) as tx:
        tx.session.add(
            OutboxRow(
                event_id=uuid.uuid4().hex,
                type="policy_updated",
                key="equities",
                world_id="equities",
                subject="an event",
                at="yesterday",
                data="{}",
            )
        )


def test_an_operator_sees_retries_and_drops_a_dead_letter(newcomer: Person) -> None:
    assert newcomer.types("world", "create", str(ROOT / "examples" / "equities.yml")).returncode == 0
    url = newcomer.reads("status")["gateway"]
    database = open_database(f"sqlite:///{Path(newcomer.folder) / 'home' / 'qmtl.db'}")
    try:
        write_unpublishable_event(database)
    finally:
        database.close()

    def count() -> int:
        health = newcomer.reads("status")["health"]
        assert health["status"] == "ok", "one event stops nothing"
        return int(health["dead_letters"])

    def listed() -> list[int]:
        letters = newcomer.reads("events", "dead-letters", "list")["dead_letters"]
        return [int(item["number"]) for item in letters]

    wait_for(lambda: count() == 1, "the dead letter")
    assert "dead_letters 1.0" in httpx.get(f"{url}/metrics", trust_env=False).text
    assert "qmtl events dead-letters list" in newcomer.types("status").stdout
    (letter,) = newcomer.reads("events", "dead-letters", "list")["dead_letters"]
    assert (letter["world_id"], letter["subject"]) == ("equities", "an event")
    number = str(letter["number"])
    assert newcomer.types("events", "dead-letters", "retry", number).returncode == 0
    # The count of `status` is up to a second old; the list is of now.
    wait_for(lambda: listed() == [int(number)], "the same dead letter, since nothing was mended")
    assert "dropped" in newcomer.types("events", "dead-letters", "drop", number).stdout
    assert listed() == []
    wait_for(lambda: count() == 0, "a count without the dropped one")
    again = newcomer.types("events", "dead-letters", "drop", number)
    assert again.returncode == 1
    assert "E_DEAD_LETTER_UNKNOWN" in again.stderr
    actions = [entry["action"] for entry in newcomer.reads("world", "audit", "equities")["entries"]]
    assert actions[-2:] == ["dead_letter.retried", "dead_letter.dropped"]
