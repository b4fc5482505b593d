"""What every backend of the ControlBus promises. A new backend joins `bus` and passes these unchanged."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from activities.events.bus import ControlBus, SqliteBus
from activities.storage.log import NewEntry
from qmtl_sdk.contracts.topic_state import Sequenced, TopicState
from tests.support.events import event

Opened = Callable[[], ControlBus]


@pytest.fixture(params=["sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Opens the same bus, as another process would."""
    there: list[ControlBus] = []

    def another() -> ControlBus:
        there.append({"sqlite": lambda: SqliteBus(tmp_path / "bus.db")}[request.param]())
        return there[-1]

    yield another
    for bus in there:
        bus.close()


@pytest.fixture
def bus(opened: Opened) -> ControlBus:
    return opened()


def everything(bus: ControlBus, topic: str) -> list[Sequenced]:
    return bus.read(topic, 0, 10_000)


def unique(items: list[Sequenced]) -> list[str]:
    return list(dict.fromkeys(item.event.idempotencykey for item in items))


def test_a_topic_numbers_its_events_from_one_without_a_gap(bus: ControlBus) -> None:
    bus.publish(
        [event("a", 1), event("a", 2, world="v"), event("b", 3), event("a", 4, kind="activation_updated")]
    )
    bus.publish([event("c", 5)])
    assert [(item.sequence, item.event.subject) for item in everything(bus, "w.policy")] == [
        (1, "a"),
        (2, "b"),
        (3, "c"),
    ]
    assert [item.sequence for item in everything(bus, "v.policy")] == [1]
    assert (bus.bounds("w.policy").first, bus.bounds("w.policy").last) == (1, 3)
    assert (bus.bounds("nothing").first, bus.bounds("nothing").last) == (1, 0)
    assert set(bus.topics()) == {"w.policy", "v.policy", "w.activation"}


def test_reading_goes_on_where_it_was_left(bus: ControlBus) -> None:
    bus.publish([event("a", i) for i in range(10)])
    first = bus.read("w.policy", 0, 4)
    rest = bus.read("w.policy", first[-1].sequence, 100)
    assert [item.sequence for item in first + rest] == list(range(1, 11))
    assert bus.read("w.policy", 10, 5) == []


def test_what_is_published_twice_is_one_event(bus: ControlBus) -> None:
    events = [event("a", i) for i in range(5)]
    bus.publish(events[:3])
    bus.publish(events)
    found = everything(bus, "w.policy")
    assert unique(found) == [item.idempotencykey for item in events]
    assert [item.sequence for item in found] == list(range(1, len(found) + 1))


def test_whoever_follows_sees_everything_of_every_topic_once_and_in_order(
    bus: ControlBus, opened: Opened
) -> None:
    start = bus.end()
    seen: list[tuple[str, Sequenced]] = []
    done = threading.Event()

    def follow() -> None:
        reader, position = opened(), start
        while len(seen) < 400:
            found, position = reader.follow(position, 37)
            seen.extend(found)
        done.set()

    threads = [threading.Thread(target=follow)]
    for number in range(4):

        def publish(number: int = number) -> None:
            writer = opened()
            for i in range(50):
                writer.publish(
                    [event(f"s{number}", i, world=f"w{number % 2}"), event(f"t{number}", i, world="both")]
                )

        threads.append(threading.Thread(target=publish))
    for thread in threads:
        thread.start()
    assert done.wait(60)
    for thread in threads:
        thread.join()
    for topic in bus.topics():
        followed = [item for name, item in seen if name == topic]
        assert followed == everything(bus, topic)
        assert [item.sequence for item in followed] == list(range(1, len(followed) + 1))


def test_a_reader_waits_for_an_event_of_another_process_and_other_threads_read_meanwhile(
    bus: ControlBus, opened: Opened
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bus.follow, bus.end(), wait_s=60.0)
        assert not wait([waiting], timeout=0.3).done, "it did not wait"
        assert everything(bus, "w.policy") == []
        opened().publish([event("a", 1)])
        found, position = waiting.result(30)
        assert [(topic, item.event.subject) for topic, item in found] == [("w.policy", "a")]
        assert bus.follow(position) == ([], position)


def test_closing_the_bus_ends_a_wait(bus: ControlBus) -> None:
    position = bus.end()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bus.follow, position, wait_s=3600.0)
        assert not wait([waiting], timeout=0.3).done
        bus.close()
        assert waiting.result(30) == ([], position)


def test_a_snapshot_is_the_fold_of_all_events(bus: ControlBus) -> None:
    bus.publish(
        [
            event("a", 1),
            event("b", 1),
            event("a", 2),
            event("s", 0, kind="session.opened"),
            event("s", 1, kind="session.ended"),
            event("t", 0, kind="session.opened"),
        ]
    )
    for topic in ("w.policy", "w.sessions", "w.nothing"):
        state = TopicState()
        for item in everything(bus, topic):
            state.apply(item)
        sequence, events = bus.snapshot(topic)
        assert (sequence, TopicState(sequence, events).state_hash) == (state.sequence, state.state_hash)


def test_trimming_forgets_events_and_keeps_snapshots_and_numbers(bus: ControlBus) -> None:
    bus.publish([event("a", i) for i in range(5)] + [event("b", 9)])
    before = bus.snapshot("w.policy")
    assert bus.trim("w.policy", 6) == 5
    assert bus.trim("w.policy", 3) == 0
    assert [item.sequence for item in everything(bus, "w.policy")] == [6]
    assert bus.snapshot("w.policy") == before
    assert (bus.bounds("w.policy").first, bus.bounds("w.policy").last) == (6, 6)
    bus.publish([event("a", 7)])
    assert bus.bounds("w.policy").last == 7


def test_the_same_log_has_the_same_id_and_retains_what_was_published(bus: ControlBus, opened: Opened) -> None:
    bus.publish([event("a", 1)])
    again = opened()
    assert again.log_id == bus.log_id
    assert everything(again, "w.policy") == everything(bus, "w.policy")


@pytest.mark.parametrize("body", ["nonsense", "{}", "[" * 5000, '{"specversion": "2.0", "id": "x"}'])
def test_an_entry_that_cannot_be_read_keeps_its_place_and_hides_no_other(tmp_path: Path, body: str) -> None:
    """One such entry, of a later version or a broken writer, ended the stream of every world."""
    bus = SqliteBus(tmp_path / "bus.db")
    try:
        start = bus.end()
        bus.publish([event("a", 1)])
        bus._log.append([NewEntry("w.policy", "x", "b", body)])
        bus.publish([event("c", 2)])
        found = bus.read("w.policy", 0, 10)
        assert [(item.sequence, item.event.type) for item in found] == [
            (1, "policy_updated"),
            (2, "unreadable"),
            (3, "policy_updated"),
        ]
        assert [item for _, item in bus.follow(start)[0]] == found
        sequence, events = bus.snapshot("w.policy")
        assert (sequence, sorted(item.subject for item in events)) == (3, ["a", "c"])
        state = TopicState()
        for item in found:
            state.apply(item)
        assert state.state_hash == TopicState(sequence, events).state_hash
    finally:
        bus.close()
