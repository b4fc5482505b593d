"""Apply a stream's frames to the states of its topics, and pass on every event once, in order.

A snapshot replaces the state of its topic, an event changes it. A duplicate event is dropped; an event after
a gap raises GapError, so that the client reconnects from its position.
"""

import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent, kind_of
from qmtl_sdk.contracts.stream import EventFrame, HeartbeatFrame, Polled, Refreshed, Resumed, Snapshot
from qmtl_sdk.contracts.topic_state import Sequenced, TopicState
from qmtl_sdk.runtime.stream_counters import StreamCounters

OnEvent = Callable[[str, CloudEvent], None]
OnSnapshot = Callable[[str, TopicState], None]


class TopicReader:
    """The states of the subscribed topics.

    `newest` has the newest sequence of each topic that the Gateway announced. `started` are the topics that
    have sent a snapshot or resumed, in the log named `log`. `last_frame_at` is the monotonic time of the last
    frame that was applied. `handled` is notified after every frame and event.
    """

    def __init__(
        self, topics: Iterable[str], on_event: OnEvent | None, on_snapshot: OnSnapshot | None
    ) -> None:
        self.states = {kind: TopicState() for kind in topics}
        self.newest: dict[str, int] = {}
        self.counters = StreamCounters()
        self.last_frame_at = float("-inf")
        self.log = ""
        self.started = set[str]()
        self.handled = threading.Condition()
        self._on_event = on_event
        self._on_snapshot = on_snapshot

    @property
    def positions(self) -> dict[str, int]:
        """The last sequence handled, by topic; without the topics that have not started."""
        return {kind: self.states[kind].sequence for kind in self.started}

    @property
    def behind(self) -> int:
        """How many events the Gateway has announced that were not handled yet."""
        return sum(max(0, last - self.states[kind].sequence) for kind, last in self.newest.items())

    def apply(self, frame: Snapshot | Resumed | EventFrame | HeartbeatFrame | Refreshed) -> None:
        """Apply a frame, and call the callbacks.

        Raises GapError where events before it are missing, QmtlError (E_EVENT_INVALID) for a snapshot that
        does not match its hash; its topic keeps its state, and its next start needs a snapshot.
        """
        if isinstance(frame, EventFrame):
            self._apply_event(frame.topic, frame)
        elif isinstance(frame, Snapshot):
            self._apply_snapshot(frame)
        elif isinstance(frame, Resumed):
            self._start_topic(frame.topic, frame.log)
        elif isinstance(frame, HeartbeatFrame):
            self.newest |= frame.positions
        self.last_frame_at = time.monotonic()
        with self.handled:
            self.handled.notify_all()

    def apply_poll(self, polled: Polled) -> None:
        """Apply the answer to a poll. Raises as `apply`, and for a topic that starts without a snapshot."""
        for kind, found in polled.topics.items():
            if found.snapshot is not None:
                self.apply(found.snapshot)
            elif kind not in self.started:
                raise QmtlError("E_EVENT_INVALID", f"{kind} begins without a snapshot")
            for item in found.events:
                self._apply_event(kind, item)
        self.apply(HeartbeatFrame(positions=polled.newest))

    def reset(self) -> None:
        """Forget all states, so that every topic starts with a snapshot."""
        self.started.clear()
        self.states = {kind: TopicState() for kind in self.states}

    def _apply_snapshot(self, frame: Snapshot) -> None:
        state = TopicState(frame.sequence, frame.events)
        if state.state_hash != frame.state_hash:
            self.started.discard(frame.topic)
            raise QmtlError("E_EVENT_INVALID", f"the snapshot of {frame.topic} does not match its hash")
        self.states[frame.topic] = state
        self.counters.snapshots[frame.reason] += 1
        self._start_topic(frame.topic, frame.log)
        if self._on_snapshot:
            self._on_snapshot(frame.topic, state)

    def _apply_event(self, kind: str, item: Sequenced) -> None:
        state, event = self.states[kind], item.event
        self.counters.max_gap = max(self.counters.max_gap, item.sequence - state.sequence - 1)
        if not state.apply(item):
            self.counters.doubles += 1
            return
        self.counters.delivery_ms.append((datetime.now(UTC) - event.time).total_seconds() * 1000)
        if kind_of(event.type) == "other":
            self.counters.unknown[event.type] += 1
        else:
            self.counters.events[event.type] += 1
            if self._on_event:
                self._on_event(kind, event)
        with self.handled:
            self.handled.notify_all()

    def _start_topic(self, kind: str, log: str) -> None:
        """Note that a topic's state is that of a log; those of another log must start again."""
        if log != self.log:
            self.started.clear()
        self.log = log
        self.started.add(kind)
