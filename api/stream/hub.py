"""The hub: reads the ControlBus once for all subscribers of this Gateway, and serves them from memory."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from activities.events.bus import ControlBus
from api.auth.claims import StreamClaims
from api.metrics import SENTINEL_SKEW, count_unknown
from api.stream.topics import frame_text, kind_of_topic, topics_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.stream import Polled, PolledTopic, Positions, Resumed, Snapshot
from qmtl_sdk.contracts.topic_state import Sequenced, state_hash

WAIT_S = 10.0
"""Seconds at most that one read of the bus waits for events."""
PAUSE_S = 0.02
"""Seconds before the next read after one that brought nothing: a bus may have returned at once."""
MAX_FRAMES = 5000
"""Frames of a topic that are kept in memory; older ones are read from the bus."""
MAX_BYTES = 4 * 2**20
"""Bytes of frames of a topic that are kept in memory."""
MAX_ALL_BYTES = 256 * 2**20
"""Bytes of frames of all topics that are kept in memory: beyond it, a topic keeps its newest frame only."""
BATCH = 500
"""Frames that are read at once, so that one far behind does not hold the event loop."""


def _ignore(_: Sequence[CloudEvent]) -> None:
    return None


class RetentionError(Exception):
    """Raised where the bus no longer holds what a subscriber needs next."""


class Hub:
    """Follows the bus and wakes the subscribers of each topic.

    `on_events` is called with the events that were read, after their subscribers have been woken.
    """

    def __init__(self, bus: ControlBus, on_events: Callable[[Sequence[CloudEvent]], None] = _ignore) -> None:
        self.bus = bus
        self._on_events = on_events
        self._frames: dict[str, deque[tuple[int, str]]] = {}
        self._bytes: Counter[str] = Counter()
        self._all_bytes = 0
        self._last: dict[str, int] = {}
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._position = bus.end()
        # A thread of its own, since a waiting read would always occupy one of asyncio's shared threads.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="bus")

    async def turn(self) -> float:
        """Read the bus once: a turn of the loop `stream`."""
        return 0.0 if await self.step(WAIT_S) else PAUSE_S

    def close(self) -> None:
        """End the thread that reads."""
        self._reader.shutdown(wait=False)

    async def step(self, wait_s: float = 0.0) -> int:
        """Read new events, wake their subscribers, and return how many events there were.

        Where there are none, it waits for some for up to `wait_s` seconds. An event that cannot be processed
        is raised after the others were.
        """
        read = partial(self.bus.follow, self._position, wait_s=wait_s)
        found, self._position = await asyncio.get_running_loop().run_in_executor(self._reader, read)
        failure: Exception | None = None
        for topic, item in found:
            try:
                self._process(topic, item)
            except Exception as error:
                failure = failure or error
        for topic in {topic for topic, _ in found}:
            for listener in self._listeners.get(topic, ()):
                listener.set()
        self._on_events([item.event for _, item in found])
        if failure is not None:
            raise failure
        return len(found)

    def _process(self, topic: str, item: Sequenced) -> None:
        """Count an event, and keep its frame."""
        if item.event.type == "sentinel_weight":
            SENTINEL_SKEW.set((datetime.now(UTC) - item.event.time).total_seconds())
        if kind_of_topic(topic) == "other":
            count_unknown(item.event.type)
        self._store(topic, item)

    def _store(self, topic: str, item: Sequenced) -> None:
        """Keep a frame in memory while the topic has subscribers; later subscribers read the bus."""
        if topic not in self._listeners:
            self._forget(topic)
            return
        frames = self._frames.setdefault(topic, deque())
        if frames and item.sequence != frames[-1][0] + 1:
            frames.clear()
            self._all_bytes -= self._bytes.pop(topic)
        frames.append((item.sequence, frame_text(topic, item)))
        size = len(frames[-1][1])
        while len(frames) > 1 and (
            self._bytes[topic] + size > MAX_BYTES
            or self._all_bytes + size > MAX_ALL_BYTES
            or len(frames) > MAX_FRAMES
        ):
            dropped = len(frames.popleft()[1])
            self._bytes[topic] -= dropped
            self._all_bytes -= dropped
        self._bytes[topic] += size
        self._all_bytes += size
        self._last[topic] = item.sequence

    def listen(self, topics: Iterable[str], listener: asyncio.Event) -> None:
        """Set `listener` at each new event of the topics."""
        for topic in topics:
            self._listeners.setdefault(topic, set()).add(listener)

    def unlisten(self, topics: Iterable[str], listener: asyncio.Event) -> None:
        """Stop setting `listener`."""
        for topic in topics:
            listeners = self._listeners[topic]
            listeners.discard(listener)
            if not listeners:
                del self._listeners[topic]
                self._forget(topic)

    def _forget(self, topic: str) -> None:
        """Drop what is kept of a topic to which nobody subscribes."""
        self._all_bytes -= self._bytes.pop(topic, 0)
        self._frames.pop(topic, None)
        self._last.pop(topic, None)

    async def after(self, topic: str, sequence: int) -> list[tuple[int, str]]:
        """Return up to BATCH frames after a sequence, without a gap, as pairs of sequence and text.

        Raises RetentionError where the bus no longer holds the next one.
        """
        last = self._last.get(topic)
        if last is not None and last <= sequence:
            return []
        frames = self._frames.get(topic)
        if frames and frames[0][0] <= sequence + 1:
            start = sequence + 1 - frames[0][0]
            return [frames[i] for i in range(start, min(len(frames), start + BATCH))]
        # Bounds first, rows second: an event published in between is in the rows. In the other order its
        # absence from the rows would look as if the bus had trimmed it.
        bounds = await asyncio.to_thread(self.bus.bounds, topic)
        found = await asyncio.to_thread(self.bus.read, topic, sequence, BATCH)
        if bounds.first > sequence + 1 or (found and found[0].sequence != sequence + 1):
            raise RetentionError
        if bounds.last == sequence and not found:
            self._last.setdefault(topic, sequence)  # up to date: the next call need not read the bus
        return [(item.sequence, frame_text(topic, item)) for item in found]

    async def newest(self, topics: Iterable[str]) -> dict[str, int]:
        """Return the newest sequence of each topic."""
        return {topic: await self._newest(topic) for topic in topics}

    async def _newest(self, topic: str) -> int:
        if topic in self._last:
            return self._last[topic]
        return (await asyncio.to_thread(self.bus.bounds, topic)).last

    async def snapshot(self, topic: str, reason: str) -> Snapshot:
        """Return the newest event of each subject. `reason`: why the subscriber gets a snapshot."""
        sequence, events = await asyncio.to_thread(self.bus.snapshot, topic)
        return Snapshot.model_validate(
            {
                "topic": kind_of_topic(topic),
                "log": self.bus.log_id,
                "sequence": sequence,
                "reason": reason,
                "events": events,
                "state_hash": state_hash({event.subject: event.data for event in events}),
            }
        )

    async def begin(self, topic: str, log: str, position: int | None) -> Snapshot | Resumed:
        """Start a subscriber: from its own position, or with a snapshot.

        Raises QmtlError: E_SEQUENCE_FUTURE where the position is past the newest event.
        """
        if position is None:
            return await self.snapshot(topic, "first")
        if log != self.bus.log_id:
            return await self.snapshot(topic, "log")
        bounds = await asyncio.to_thread(self.bus.bounds, topic)
        if position > bounds.last:
            raise QmtlError(
                "E_SEQUENCE_FUTURE",
                f"{kind_of_topic(topic)} ends at {bounds.last}, the client's position is {position}",
                "start again without a position",
                last=bounds.last,
            )
        if position + 1 < bounds.first:
            return await self.snapshot(topic, "retention")
        return Resumed(topic=kind_of_topic(topic), log=self.bus.log_id, sequence=position)

    async def poll(self, claims: StreamClaims, log: str, positions: Positions, wait_s: float) -> Polled:
        """Return what each topic published after the given positions, waiting up to `wait_s` for an event."""
        listener = asyncio.Event()
        topics = topics_of(claims)
        self.listen(topics, listener)
        try:
            deadline = time.monotonic() + wait_s
            while True:
                listener.clear()
                found = {
                    kind_of_topic(topic): await self._polled(topic, log, positions.get(kind_of_topic(topic)))
                    for topic in topics
                }
                left = deadline - time.monotonic()
                if any(item.snapshot or item.events for item in found.values()) or left <= 0:
                    newest = {
                        kind_of_topic(topic): last for topic, last in (await self.newest(topics)).items()
                    }
                    return Polled(log=self.bus.log_id, topics=found, newest=newest)
                try:
                    async with asyncio.timeout(left):
                        await listener.wait()
                except TimeoutError:
                    continue  # the loop returns what it has
        finally:
            self.unlisten(topics, listener)

    async def _polled(self, topic: str, log: str, position: int | None) -> PolledTopic:
        begun = await self.begin(topic, log, position)
        events = await asyncio.to_thread(self.bus.read, topic, begun.sequence, BATCH)
        return PolledTopic(snapshot=begun if isinstance(begun, Snapshot) else None, events=tuple(events))
