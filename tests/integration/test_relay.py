"""From the outbox to the bus: everything once, in the order of commits within a key, whatever dies."""

import os
import random
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select

from activities.events.bus import SqliteBus
from activities.events.dead_letters import SqlDeadLetters
from activities.events.outbox import SqlOutbox
from activities.events.relay import Relay
from activities.storage.database import Database
from activities.storage.tables import OutboxRow
from activities.storage.transactions import RecordedChange
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.topic_state import Sequenced
from tests.support import ROOT
from tests.support.events import record_change
from tests.support.forked import Forked
from tests.support.machine import wait_for
from tests.support.trail import audit_trail


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[SqliteBus]:
    found = SqliteBus(tmp_path / "bus.db")
    yield found
    found.close()


def told(bus: SqliteBus) -> dict[str, list[Sequenced]]:
    return {topic: bus.read(topic, 0, 100_000) for topic in bus.topics()}


def whole_and_in_order(database: Database, bus: SqliteBus) -> None:
    """Every row of the outbox is on the bus once.

    Within a world in the order of its number there, which is that of commits.
    """
    with database.read() as session:
        rows = {row.event_id: row for row in session.exec(select(OutboxRow))}
    seen: list[str] = []
    for topic, items in told(bus).items():
        assert [item.sequence for item in items] == list(range(1, len(items) + 1)), topic
        numbers = [rows[item.event.id].seq for item in items]
        assert numbers == sorted(numbers), topic  # type: ignore[type-var]
        counters: dict[str, int] = defaultdict(lambda: -1)
        for item in items:
            if item.event.type == "policy_updated":
                assert item.event.data is not None
                assert item.event.data["version"] > counters[item.event.subject], topic
                counters[item.event.subject] = item.event.data["version"]
        seen += [item.event.id for item in items]
    assert sorted(seen) == sorted(rows)
    assert all(row.published_at for row in rows.values())


def write_busily(database: Database, writer: int, rounds: int) -> None:
    """Short transactions and long ones, on a world of one's own and on one that all share."""
    rng = random.Random(writer)
    for i in range(rounds):
        with database.write("test") as tx:
            tx.record(
                RecordedChange(
                    "test.told",
                    f"own{writer}",
                    f"writer{writer}",
                    event="policy_updated",
                    data={"version": i},
                )
            )
            if rng.random() < 0.3:
                time.sleep(
                    rng.random() * 0.01
                )  # a slow transaction: what has later numbers may commit before it
        record_change(database, f"writer{writer}", i, world="shared")


def test_nothing_is_lost_or_doubled_beside_eight_writers(database: Database, bus: SqliteBus) -> None:
    """Trap 19: numbers are given before the commit."""
    stop = threading.Event()
    relay = threading.Thread(target=Relay(database, bus, 100_000).run, args=(stop,))
    relay.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda writer: write_busily(database, writer, 40), range(8)))
        wait_for(lambda: not SqlOutbox(database).waiting(1), "empty outbox")
    finally:
        stop.set()
        relay.join()
    whole_and_in_order(database, bus)
    assert len(told(bus)["shared.policy"]) == 320


@pytest.mark.parametrize("line", ["publish", "mark_published"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_line_of_a_step_loses_and_doubles_nothing(
    database: Database, bus: SqliteBus, monkeypatch: pytest.MonkeyPatch, line: str, when: str
) -> None:
    class DiedError(BaseException):  # a death, which no handler of errors sees
        pass

    for i in range(10):
        record_change(database, "a", i)
    owner = SqliteBus if line == "publish" else SqlOutbox
    real = getattr(owner, line)

    def dying(self: object, *args: object) -> None:
        if when == "after":
            real(self, *args)
        raise DiedError

    with monkeypatch.context() as patched:
        patched.setattr(owner, line, dying)
        with pytest.raises(DiedError):
            Relay(database, bus, 1000).step()
    record_change(database, "a", 10)
    relay = Relay(database, bus, 1000)
    while relay.step():
        pass
    whole_and_in_order(database, bus)


def poison(database: Database, subject: str, world: str = "w") -> int:
    """Write a row that is no event, as an earlier version or a person could. Returns its number."""
    with database.write("test", bookkeeping=True) as tx:
        row = OutboxRow(
            event_id=uuid.uuid4().hex,
            type="policy_updated",
            key=world,
            world_id=world,
            subject=subject,
            at="yesterday",
            data="{}",
        )
        tx.session.add(row)
        tx.session.flush()
        assert row.seq is not None
        return row.seq


def test_a_row_that_is_no_event_becomes_a_dead_letter_and_the_rest_goes_on(
    database: Database, bus: SqliteBus
) -> None:
    letters = SqlDeadLetters(database)
    record_change(database, "a", 1, world="w")
    number = poison(database, "b")
    record_change(database, "a", 2, world="w")
    record_change(database, "c", 1, world="other")
    Relay(database, bus, 1000).step()
    events = [item.event for item in bus.read("w.policy", 0, 10)]
    assert [(event.subject, event.data["version"]) for event in events if event.data] == [("a", 1), ("a", 2)]
    assert len(bus.read("other.policy", 0, 10)) == 1
    assert not SqlOutbox(database).waiting(1)
    (letter,) = letters.all(0, 10)
    assert (letter.number, letter.world_id, letter.subject) == (number, "w", "b")
    assert "time" in letter.reason
    assert letters.count(1000) == 1
    assert letters.all(0, 10, ["other"]) == []


def test_an_event_that_the_bus_refuses_becomes_a_dead_letter(
    database: Database, bus: SqliteBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        record_change(database, "bad" if number == 2 else "good", number, world="w")
    real = bus.publish

    def picky(events: Sequence[CloudEvent]) -> None:
        if any(event.subject == "bad" for event in events):
            raise RuntimeError("message too large")
        real(events)

    relay = Relay(database, bus, 1000)
    with monkeypatch.context() as patched:
        patched.setattr(bus, "publish", picky)
        relay.step()
    versions = [item.event.data["version"] for item in bus.read("w.policy", 0, 10) if item.event.data]
    assert versions == [0, 1, 3, 4]
    (letter,) = SqlDeadLetters(database).all(0, 10)
    assert letter.reason == "RuntimeError: message too large"
    assert SqlDeadLetters(database).retry(letter.number, "ana").number == letter.number
    while relay.step():
        pass
    assert [item.event.subject for item in bus.read("w.policy", 0, 10)][-1] == "bad"
    assert SqlDeadLetters(database).count(1000) == 0


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), QmtlError("E_UNAVAILABLE", "gone")])
def test_a_bus_that_is_away_makes_no_dead_letters(
    database: Database, bus: SqliteBus, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for number in range(3):
        record_change(database, "a", number)

    def away(_: Sequence[CloudEvent]) -> None:
        raise error

    relay = Relay(database, bus, 1000)
    with monkeypatch.context() as patched:
        patched.setattr(bus, "publish", away)
        with pytest.raises(type(error)):
            relay.step()
    assert SqlDeadLetters(database).count(1000) == 0
    while relay.step():
        pass
    whole_and_in_order(database, bus)


def test_a_dead_letter_is_dropped_or_refused_a_late_retry(database: Database, bus: SqliteBus) -> None:
    letters = SqlDeadLetters(database)
    number = poison(database, "a")
    record_change(database, "a", 2, world="w")
    Relay(database, bus, 1000).step()
    with pytest.raises(QmtlError, match="E_DEAD_LETTER_SUPERSEDED"):
        letters.retry(number, "ana")
    assert letters.drop(number, "ana").number == number
    with pytest.raises(QmtlError, match="E_DEAD_LETTER_UNKNOWN"):
        letters.drop(number, "ana")
    assert letters.count(1000) == 0
    entries = audit_trail(database).page("w", 0, 100).entries
    assert [(entry.action, entry.subject) for entry in entries if entry.actor == "ana"] == [
        ("dead_letter.dropped", str(number))
    ]


def test_the_relay_goes_on_after_any_error(
    database: Database, bus: SqliteBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RuntimeError("once"), KeyError("twice")])
    real = SqlOutbox.waiting

    def failing(self: SqlOutbox, limit: int) -> list[OutboxRow]:
        for error in failures:
            raise error
        return real(self, limit)

    record_change(database, "a", 1)
    monkeypatch.setattr("activities.storage.elected._RETRY_S", 0.01)
    monkeypatch.setattr(SqlOutbox, "waiting", failing)
    stop = threading.Event()
    relay = threading.Thread(target=Relay(database, bus, 1000).run, args=(stop,))
    relay.start()
    try:
        wait_for(lambda: bool(bus.read("equities.policy", 0, 1)), "the event")
    finally:
        stop.set()
        relay.join()


def start_relay(dsn: str, home: Path) -> Forked:
    env = {
        **os.environ,
        "QMTL_HOME": str(home),
        "QMTL_GATEWAY__DATABASE_DSN": dsn,
        "QMTL_GATEWAY__DATABASE_BACKEND": "postgres" if dsn.startswith("postgres") else "sqlite",
        "PYTHONPATH": str(ROOT),
    }
    return Forked("activities.events.relay", env=env, log=home / "relay.log", folder=home)


def test_a_relay_that_is_killed_again_and_again_tells_everything_once(
    database: Database, dsn: str, bus: SqliteBus, tmp_path: Path
) -> None:
    rng = random.Random(5)
    with ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write_busily, database, writer, 150) for writer in range(2)]
        before = 0
        for _ in range(4):
            relay = start_relay(dsn, tmp_path)
            try:
                wait_for(lambda: bus.end() > before or all(item.done() for item in writing), "events")  # noqa: B023
                time.sleep(rng.random() * 0.05)  # somewhere in its work, which is what is tried here
            finally:
                relay.kill()
                relay.wait()
            before = bus.end()
        for item in writing:
            item.result()
    record_change(database, "last", 0)  # so that an empty outbox says that this relay is up
    relay = start_relay(dsn, tmp_path)
    try:
        wait_for(lambda: not SqlOutbox(database).waiting(1), "empty outbox")
    finally:
        relay.terminate()
        assert relay.wait(30) == 0
    whole_and_in_order(database, bus)


def test_one_relay_at_a_time_and_the_next_takes_over(database: Database, bus: SqliteBus) -> None:
    with database.elected("relay") as mine:
        assert mine
        with database.elected("relay") as other:
            assert not other
        stop = threading.Event()
        second = threading.Thread(target=Relay(database, bus, 1000).run, args=(stop,))
        second.start()
        record_change(database, "a", 1)
        assert SqlOutbox(database).waiting(1)
    try:
        wait_for(lambda: not SqlOutbox(database).waiting(1), "empty outbox")
    finally:
        stop.set()
        second.join()
    whole_and_in_order(database, bus)


def test_topics_are_trimmed_to_what_is_retained(database: Database, bus: SqliteBus) -> None:
    for i in range(30):
        record_change(database, "a", i)
    relay = Relay(database, bus, 10)
    relay.step()
    relay.trim()
    assert [item.sequence for item in bus.read("equities.policy", 0, 100)] == list(range(21, 31))


def test_the_age_of_what_waits(database: Database, bus: SqliteBus) -> None:
    Relay(database, bus, 10).step()
    assert SqlOutbox(database).age_s() == 0
    record_change(database, "a", 1)
    assert SqlOutbox(database).age_s() > 0


HOSTILE_ROWS = {
    "deep": {"data": "[" * 5000 + "]" * 5000},
    "too deep for a reader": {"data": '{"a":' * 150 + "1" + "}" * 150},
    "a list": {"data": "[]"},
    "not JSON": {"data": "nonsense"},
    "a surrogate": {"data": '{"a": "\\ud800"}'},
    "not finite": {"data": '{"a": NaN}'},
    "huge": {"data": '{"a": "' + "x" * 5_000_000 + '"}'},
    "no type": {"type": ""},
    "no subject": {"subject": ""},
}


@pytest.mark.parametrize("row", HOSTILE_ROWS.values(), ids=HOSTILE_ROWS)
def test_a_hostile_row_becomes_a_dead_letter_and_never_stops_the_relay(
    database: Database, bus: SqliteBus, row: dict[str, str]
) -> None:
    body = {"type": "policy_updated", "subject": "b", "at": "2024-01-01T00:00:00+00:00", "data": "{}", **row}
    with database.write("test", bookkeeping=True) as tx:
        tx.session.add(OutboxRow(event_id=uuid.uuid4().hex, key="w", world_id="w", **body))
    record_change(database, "a", 1, world="w")
    Relay(database, bus, 1000).step()
    assert [item.event.subject for item in bus.read("w.policy", 0, 10)] == ["a"]
    assert not SqlOutbox(database).waiting(1)
    (letter,) = SqlDeadLetters(database).all(0, 10)
    assert letter.reason.isprintable()


def test_whatever_error_one_row_raises_is_that_rows_alone(
    database: Database, bus: SqliteBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_change(database, "bad", 1, world="w")
    record_change(database, "good", 2, world="w")
    relay = Relay(database, bus, 1000)
    real = relay._event

    def failing(row: OutboxRow) -> CloudEvent:
        if row.subject == "bad":
            raise RecursionError
        return real(row)

    monkeypatch.setattr(relay, "_event", failing)
    relay.step()
    assert [item.event.subject for item in bus.read("w.policy", 0, 10)] == ["good"]
    assert SqlDeadLetters(database).count(1000) == 1


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_a_retry_beside_a_later_event_is_refused(database: Database, bus: SqliteBus) -> None:
    """It looked for later events before that one was committed, and would have been published after it."""
    number = poison(database, "a")
    record_change(database, "b", 1, world="w")  # the audit chain of the world has a head
    Relay(database, bus, 1000).step()
    with ThreadPoolExecutor(1) as pool:
        with database.write("ana") as tx:
            tx.lock_chain("w")
            retried = pool.submit(SqlDeadLetters(database).retry, number, "ana")
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            with database._engine.connect() as other:
                wait_for(lambda: other.execute(waiting).scalar_one() > 0, "the wait of the retry")
            tx.record(RecordedChange("policy.added", "w", "a", event="policy_updated"))
        with pytest.raises(QmtlError, match="E_DEAD_LETTER_SUPERSEDED"):
            retried.result(30)
