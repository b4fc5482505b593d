"""Any interleaving of events, cuts, refreshes, trims and restarts leaves the client in the state of the log,
and hands every event on once.

The hub reads a real bus and the client's `TopicReader` folds what it sends; only the wire between them is the
test's, which cuts it where it likes.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from activities.events.bus import SqliteBus
from activities.storage.log import Bounds
from api.stream import Hub, RetentionError
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.stream import ServerFrame
from qmtl_sdk.contracts.topic_state import Sequenced, TopicState
from qmtl_sdk.runtime.topic_reader import TopicReader
from tests.support.events import event

TOPIC = "w.policy"


class Wire(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qmtl-wire-"))
        self.bus = SqliteBus(self.folder / "bus.db")
        self.start_gateway()
        self.told: list[CloudEvent] = []
        self.cut_at = 0
        self.restart_client()

    # what happens in the system

    @rule(subject=st.sampled_from("abc"), count=st.integers(1, 4))
    def publish(self, subject: str, count: int) -> None:
        events = [event(subject, len(self.told) + i) for i in range(count)]
        self.told += events
        self.bus.publish(events)

    @rule(count=st.integers(1, 3))
    def publish_again(self, count: int) -> None:
        self.bus.publish(self.told[-count:])

    @rule(keep=st.integers(0, 3))
    def trim(self, keep: int) -> None:
        self.bus.trim(TOPIC, self.bus.bounds(TOPIC).last - keep + 1)

    @rule()
    def start_gateway(self) -> None:
        self.hub = Hub(self.bus)
        self.hub.listen([TOPIC], asyncio.Event())
        self.open = False

    @rule()
    def the_gateway_follows(self) -> None:
        asyncio.run(self.hub.step())

    # what happens on the wire

    @rule()
    def restart_client(self) -> None:
        self.handed: list[str] = []
        self.jumped = True  # what came before its snapshot it does not hear of
        self.reader = TopicReader(
            ["policy"],
            on_event=lambda _, item: self.handed.append(item.id),
            on_snapshot=lambda *_: self.snapshot(),
        )
        self.open = False

    def snapshot(self) -> None:
        self.handed, self.jumped = [], True
        self.base = self.reader.states["policy"].sequence

    @rule()
    def cut(self) -> None:
        self.open = False

    @rule(frames=st.integers(0, 6), twice=st.booleans())
    def serve(self, frames: int, twice: bool) -> None:
        """Some frames get through, perhaps each of them twice; then the wire is silent or was cut."""
        asyncio.run(self._serve(frames, twice))

    async def _serve(self, frames: int, twice: bool) -> None:
        texts: list[str] = []
        if not self.open:
            begun = await self.hub.begin(TOPIC, self.reader.log, self.reader.positions.get("policy"))
            texts.append(begun.model_dump_json())
            place = begun.sequence
        else:
            place = self.reader.states["policy"].sequence
        while len(texts) < frames:
            try:
                found = await self.hub.after(TOPIC, place)
            except RetentionError:
                snapshot = await self.hub.snapshot(TOPIC, "retention")
                texts.append(snapshot.model_dump_json())
                place = snapshot.sequence
                continue
            if not found:
                break
            texts += [text for _, text in found]
            place = found[-1][0]
        for text in texts[:frames]:
            self.reader.apply(ServerFrame.validate_json(text))
            self.open = True
            if twice and '"type":"event"' in text:
                self.reader.apply(ServerFrame.validate_json(text))

    @rule(ahead=st.integers(1, 5))
    def a_position_from_the_future_is_refused(self, ahead: int) -> None:
        with pytest.raises(QmtlError, match="E_SEQUENCE_FUTURE"):
            asyncio.run(self.hub.begin(TOPIC, self.bus.log_id, self.bus.bounds(TOPIC).last + ahead))

    # what must hold

    @invariant()
    def the_client_is_where_the_log_was(self) -> None:
        if not hasattr(self, "reader") or not self.reader.positions:
            return
        place = self.reader.states["policy"].sequence
        expected = TopicState()
        for subject_event in self.told[:place]:
            expected.events[subject_event.subject] = subject_event
        assert self.reader.states["policy"].state_hash == expected.state_hash
        assert self.handed == [item.id for item in self.told[self.base : place]], "each once, in order"
        assert self.reader.counters.max_gap == 0

    def teardown(self) -> None:
        if hasattr(self, "bus"):
            asyncio.run(self._catch_up())
            self.the_client_is_where_the_log_was()
            assert self.reader.states["policy"].sequence == len(self.told)
            self.bus.close()
            shutil.rmtree(self.folder)

    async def _catch_up(self) -> None:
        self.open = False
        while await self.hub.step():
            pass
        await self._serve(10_000, twice=False)


class Late(SqliteBus):
    """A bus to which an event comes between two looks of the hub."""

    def __init__(self, path: Path, look: str) -> None:
        super().__init__(path)
        self._look = look
        self.told = 0

    def _looked(self, look: str) -> None:
        if look == self._look and self.told < 5:
            self.told += 1
            self.publish([event("late", self.told)])

    def read(self, topic: str, after: int, limit: int) -> list[Sequenced]:
        found = super().read(topic, after, limit)
        self._looked("read")
        return found

    def bounds(self, topic: str) -> Bounds:
        found = super().bounds(topic)
        self._looked("bounds")
        return found


@pytest.mark.parametrize("look", ["read", "bounds"])
def test_an_event_that_comes_between_two_looks_is_not_taken_for_one_that_was_trimmed(
    tmp_path: Path, look: str
) -> None:
    bus = Late(tmp_path / "bus.db", look)

    async def listen() -> list[int]:
        hub, heard = Hub(bus), 0
        hub.listen([TOPIC], asyncio.Event())
        for _ in range(30):
            for sequence, _ in await hub.after(TOPIC, heard):
                assert sequence == heard + 1
                heard = sequence
            await hub.step()
        return [heard, bus.told]

    try:
        heard, told = asyncio.run(listen())
        assert heard == told >= 1
    finally:
        bus.close()


def test_the_frames_of_all_topics_together_have_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it a topic keeps its newest frame, and the others come from the bus."""
    monkeypatch.setattr("api.stream.hub.MAX_ALL_BYTES", 20_000)
    bus, topics = SqliteBus(tmp_path / "bus.db"), [f"w{number}.policy" for number in range(4)]

    async def kept() -> tuple[int, list[list[int]]]:
        hub = Hub(bus)
        hub.listen(topics, asyncio.Event())
        for number in range(40):
            bus.publish([event("a", number, topic.removesuffix(".policy")) for topic in topics])
            await hub.step()
        held = sum(len(text) for frames in hub._frames.values() for _, text in frames)
        return held, [[sequence for sequence, _ in await hub.after(topic, 0)] for topic in topics]

    try:
        held, heard = asyncio.run(kept())
    finally:
        bus.close()
    assert 10_000 < held < 25_000
    assert heard == [list(range(1, 41))] * 4


TestWire = Wire.TestCase
TestWire.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
