"""Queues lose what is old only after its archive was read back and compared."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from activities.artifacts.folder import FolderArtifacts
from activities.events.bus import SqliteBus
from activities.events.relay import Relay
from activities.graph.sql import SqlGraphStore
from activities.queues import upkeep
from activities.queues.catalogue import SqlQueueCatalogue
from activities.queues.store import SqliteQueues
from activities.queues.upkeep import QueueRetention, decode
from activities.sessions.sql import SqlSessionStore
from activities.storage.database import Database
from activities.storage.tables import OutboxRow, QueueRow
from qmtl_sdk import Node, QmtlError, Strategy, StreamInput, TagQueryNode
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.sessions import QueueMessage, SessionOpen
from qmtl_sdk.nodes.strategy import BuiltStrategy
from tests.support.admissions import diff

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=40)


class Tagged(Strategy):
    def setup(self) -> None:
        price = StreamInput(tags=["P"], interval="1h", period=1)
        self.add_nodes([Node(price, lambda view: 1.0, name="rsi", tags=["ta"])])


class Untagged(Strategy):
    """The stream of `Tagged`, and a node that no other strategy looks for."""

    def setup(self) -> None:
        price = StreamInput(tags=["P"], interval="1h", period=1)
        self.add_nodes([Node(price, lambda view: 2.0, name="mine")])


class Relabelled(Strategy):
    def setup(self) -> None:
        price = StreamInput(tags=["P"], interval="1h", period=1)
        self.add_nodes([Node(price, lambda view: 1.0, name="rsi", tags=["other"])])


class AnotherRelabelled(Strategy):
    def setup(self) -> None:
        price = StreamInput(tags=["Q"], interval="1h", period=1)
        self.add_nodes([Node(price, lambda view: 1.0, name="rsi", tags=["other"])])


class Query(Strategy):
    def setup(self) -> None:
        self.add_nodes([TagQueryNode(query_tags=["ta"], interval="1h", compute_fn=lambda view: 1.0)])


def message(number: int) -> QueueMessage:
    return QueueMessage(key=f"key-{number}", ts=number, values={"value": float(number), "missing": None})


class House:
    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.queues = SqliteQueues(folder / "queues.db")
        self.artifacts = FolderArtifacts(folder / "artifacts")
        self.catalogue = SqlQueueCatalogue(database)
        self.graph = SqlGraphStore(database)
        self.retention = QueueRetention(database, self.queues, self.artifacts)
        diff(database, "q", "w", "Query", BuiltStrategy(Query).dag, Domain.DRYRUN)
        diff(database, "t", "w", "Tagged", BuiltStrategy(Tagged).dag, Domain.DRYRUN)
        (found,) = self.catalogue.by_tag(["ta"], 3600, "any", "w", "dryrun")
        self.topic = found.topic

    def fill(self, count: int) -> None:
        self.queues.append(self.topic, tuple(message(i) for i in range(count)))

    def told(self, event: str) -> list[str]:
        with self.database.read() as session:
            return [
                row.data
                for row in session.exec(
                    select(OutboxRow).where(OutboxRow.type == event).order_by(OutboxRow.seq)
                )
            ]  # type: ignore[arg-type]


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    found = House(database, tmp_path)
    yield found
    found.queues.close()


def test_what_is_young_stays(house: House) -> None:
    house.fill(10)
    assert house.retention.due(NOW) == []
    assert house.retention.apply(house.topic, NOW).archived == 0
    assert len(house.queues.read(house.topic, 0, 100)[0]) == 10


def test_what_is_old_is_archived_word_for_word_and_the_empty_queue_dropped(house: House) -> None:
    house.fill(10)
    assert house.topic in house.retention.due(LATER)
    before = house.told("tagquery.upsert")
    kept = house.retention.apply(house.topic, LATER)
    assert (kept.archived, kept.dropped) == (10, True)
    assert decode(house.artifacts.get(kept.archive)) == [message(i) for i in range(10)]
    assert house.queues.read(house.topic, 0, 100)[0] == []
    assert house.catalogue.by_tag(["ta"], 3600, "any", "w", "dryrun") == []
    with pytest.raises(QmtlError, match="no queue"):
        house.catalogue.find(house.topic)
    assert ['"change":"archive"' in text for text in house.told("queue_lifecycle")] == [True, False]
    assert '"queues":[]' in house.told("tagquery.upsert")[len(before)]
    assert house.retention.apply(house.topic, LATER).archived == 0


def test_all_queues_are_due_however_many_there_are(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upkeep took 2,000 of them and reported all."""
    monkeypatch.setattr(upkeep, "_QUEUES", 1)
    with house.database.read() as session:
        every = {row.topic for row in session.exec(select(QueueRow))}
    assert len(every) > 2
    assert set(house.retention.due(LATER)) == every


def test_a_queue_that_is_used_is_archived_and_stays(house: House) -> None:
    SqlSessionStore(house.database, 1e9).open(
        SessionOpen(world_id="w", strategy_id="strategy:s", runner="r"), "n", "dryrun", "me"
    )
    house.fill(3)
    kept = house.retention.apply(house.topic, LATER)
    assert (kept.archived, kept.dropped) == (3, False)
    house.queues.append(house.topic, (message(2), message(3)))
    found, position = house.queues.read(house.topic, 0, 100)
    assert ([item.key for item in found], position) == (["key-3"], 4), (
        "what was archived is still known by its key"
    )


def test_a_queue_that_is_filled_before_it_is_dropped_stays(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a session appended between the archive and the drop was removed without an archive."""
    house.fill(3)
    trim = SqliteQueues.trim

    def filled_meanwhile(self: SqliteQueues, topic: str, first: int) -> int:
        count = trim(self, topic, first)
        house.queues.append(topic, (message(3),))
        return count

    monkeypatch.setattr(SqliteQueues, "trim", filled_meanwhile)
    monkeypatch.setattr(QueueRetention, "_idle", lambda *_: True)  # it was when it was looked at
    kept = house.retention.apply(house.topic, LATER)
    assert kept.archived == 3
    assert not kept.dropped
    assert [item.key for item in house.queues.read(house.topic, 0, 100)[0]] == ["key-3"]


def test_what_is_appended_to_a_queue_that_came_back_stays(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalogue had dropped it, a session brought it back and filled it, and then its messages went."""
    drop = SqliteQueues.drop
    with ThreadPoolExecutor(1) as pool:

        def back() -> None:
            house.graph.ensure_queues("w", "dryrun", BuiltStrategy(Tagged).dag, "me")
            house.fill(2)

        def dropped_late(self: SqliteQueues, topic: str) -> None:
            wait([pool.submit(back)], 0.5)  # it cannot come back before the messages are gone
            drop(self, topic)

        monkeypatch.setattr(SqliteQueues, "drop", dropped_late)
        assert house.retention.apply(house.topic, LATER).dropped
    assert len(house.queues.read(house.topic, 0, 100)[0]) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "gone"])
def test_nothing_is_removed_where_the_archive_is_not_what_the_queue_holds(
    house: House, tmp_path: Path, damage: str
) -> None:
    """Trap 11: an archive step uploaded an empty object and then dropped the queue."""

    class Broken(FolderArtifacts):
        def put(self, hash: str, data: bytes) -> None:
            super().put(hash, data)
            path = self._path(hash)
            if damage == "gone":
                path.unlink()
            else:
                path.write_bytes(
                    {"empty": b"", "cut": data[: len(data) // 2], "changed": data.replace(b"3.0", b"4.0")}[
                        damage
                    ]
                )

    house.fill(10)
    retention = QueueRetention(house.database, house.queues, Broken(tmp_path / "broken"))
    with pytest.raises(QmtlError) as caught:
        retention.apply(house.topic, LATER)
    assert caught.value.code == "E_QUEUE_ARCHIVE"
    assert [item.key for item in house.queues.read(house.topic, 0, 100)[0]] == [f"key-{i}" for i in range(10)]
    assert house.told("queue_lifecycle") == []
    assert house.retention.apply(house.topic, LATER).archived == 10


def test_a_crash_between_note_and_removal_archives_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DiedError(Exception):
        pass

    def dying(self: object, topic: str, first: int) -> int:
        raise DiedError

    house.fill(10)
    with monkeypatch.context() as patched:
        patched.setattr(SqliteQueues, "trim", dying)
        with pytest.raises(DiedError):
            house.retention.apply(house.topic, LATER)
    assert len(house.queues.read(house.topic, 0, 100)[0]) == 10
    assert house.retention.apply(house.topic, LATER).archived == 10


def test_a_dropped_queue_comes_back_empty_when_a_strategy_runs_again(house: House) -> None:
    house.fill(3)
    house.retention.apply(house.topic, LATER)
    topics = house.graph.ensure_queues("w", "dryrun", BuiltStrategy(Tagged).dag, "me")
    assert house.topic in topics.values()
    assert [item.topic for item in house.catalogue.by_tag(["ta"], 3600, "any", "w", "dryrun")] == [
        house.topic
    ]
    house.fill(2)
    assert len(house.queues.read(house.topic, 0, 100)[0]) == 2


def test_a_strategy_runs_whose_only_new_queues_have_no_tags(house: House) -> None:
    dag = BuiltStrategy(Untagged).dag
    house.graph.ensure_queues("w", "dryrun", BuiltStrategy(Tagged).dag, "me")
    topics = house.graph.ensure_queues("w", "dryrun", dag, "me")
    assert len(topics) == len(dag.nodes)


def test_a_dropped_queue_that_comes_back_under_other_tags_is_in_the_event_of_its_tags(house: House) -> None:
    """It keeps its old tags, so the comparison of exact tags left it out."""
    assert BuiltStrategy(Relabelled).dag.strategy_id == BuiltStrategy(Tagged).dag.strategy_id
    house.fill(3)
    house.retention.apply(house.topic, LATER)
    diff(house.database, "a", "w", "Another", BuiltStrategy(AnotherRelabelled).dag, Domain.DRYRUN)
    (other,) = house.catalogue.by_tag(["other"], 3600, "any", "w", "dryrun")
    house.graph.ensure_queues("w", "dryrun", BuiltStrategy(Relabelled).dag, "me")
    told = [json.loads(body) for body in house.told("queue_updated")]
    newest = [body["queues"] for body in told if body["tags"] == ["other"]][-1]
    assert {item["queue"] for item in newest} == {house.topic, other.topic}


def test_a_dropped_queue_is_no_longer_in_the_state_of_its_tags(house: House) -> None:
    """`queue_updated` was not sent, so a topic's state listed the queue for ever."""
    house.fill(3)
    house.retention.apply(house.topic, LATER)
    house.retention.apply(house.topic, LATER)
    told = [json.loads(body) for body in house.told("queue_updated")]
    assert [body["queues"] for body in told if body["tags"] == ["ta"]][-1] == []


def test_a_dropped_queue_leaves_nothing_in_the_snapshot_of_its_topic(house: House, tmp_path: Path) -> None:
    """Its last `queue_lifecycle` stayed, and every runner got those of all queues that there ever were."""
    house.fill(3)
    bus = SqliteBus(tmp_path / "bus.db")
    relay = Relay(house.database, bus, 1000)
    try:
        relay.step()
        _, events = bus.snapshot("w.queues")
        assert house.topic in str(events)
        assert "dryrun:3600:ta" in [event.subject for event in events]
        assert house.retention.apply(house.topic, LATER).dropped
        relay.step()
        _, events = bus.snapshot("w.queues")
        assert house.topic not in str(events)
        assert "dryrun:3600:ta" not in [event.subject for event in events]
    finally:
        bus.close()
