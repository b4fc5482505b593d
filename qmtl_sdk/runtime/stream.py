"""Read a world's stream: a thread keeps each topic's state and passes on every event once, in order.

1. Subscribe at a Gateway (at each try the next of several), open the socket, send the last sequences handled.
2. The Gateway sends a snapshot of each topic or the missed events, then new events. Each is applied to the
   topic's state and passed on. A duplicate is dropped; a gap makes the client reconnect from its position.
3. The token is refreshed on the open socket. A socket that is silent or breaks is opened again.
4. Where sockets are blocked, the client polls by HTTP and retries the socket every `SOCKET_RETRY_S`.

`heard_at` is the monotonic time of the Gateway's last frame.
"""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from socket import SHUT_RDWR
from types import TracebackType
from typing import Any

import httpx
from pydantic import ValidationError
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent, kind_of
from qmtl_sdk.contracts.stream import (
    EventFrame,
    HeartbeatFrame,
    Hello,
    Polled,
    Refresh,
    Refreshed,
    Resumed,
    ServerFrame,
    Snapshot,
    Subscribe,
    close_code,
)
from qmtl_sdk.contracts.topic_state import GapError, Sequenced, TopicState
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.stream_counters import StreamCounters

SILENCE_S = 15.0
"""A socket without a frame for this long is opened again, in seconds."""

TICK_S = 0.5
"""How long one read waits, in seconds."""

SOCKET_RETRY_S = 30.0
"""How long the client polls before it tries a socket again, in seconds."""

MIN_PAUSE_S = 0.05
"""The first pause before a reconnect, in seconds; it doubles with each failure."""

MAX_PAUSE_S = 5.0
"""The longest pause before a reconnect, in seconds."""

MAX_FRAME = 16 * 1024 * 1024
"""The largest frame that is accepted, in bytes."""

OnEvent = Callable[[str, CloudEvent], None]
OnSnapshot = Callable[[str, TopicState], None]


class StreamClient:
    """Reads a world's stream; use it in a `with` block, or call `start` and `close`.

    Callbacks run on its thread, one at a time. An exception of a callback ends the stream and is stored in
    `failure`.
    """

    def __init__(
        self,
        gateways: Sequence[GatewayClient],
        wanted: Subscribe,
        on_event: OnEvent | None = None,
        on_snapshot: OnSnapshot | None = None,
        *,
        sockets: bool = True,
    ) -> None:
        self._gateways = itertools.cycle(gateways)
        self._wanted = wanted
        self._sockets = sockets
        self._on_event = on_event
        self._on_snapshot = on_snapshot
        self.states = {kind: TopicState() for kind in wanted.topics}
        self.newest: dict[str, int] = {}
        self.counters = StreamCounters()
        self.heard_at = float("-inf")
        self.fault = ""
        self.failure: BaseException | None = None
        self._log = ""
        self._known = set[str]()
        self._served = False
        self._handled = threading.Condition()
        self._stop = threading.Event()
        self._socket: ClientConnection | None = None
        self._thread = threading.Thread(target=self._run, name="qmtl-stream", daemon=True)

    @property
    def positions(self) -> dict[str, int]:
        """The last sequence handled, by topic; without the topics that have not begun."""
        return {kind: self.states[kind].sequence for kind in self._known}

    @property
    def behind(self) -> int:
        """How many events the Gateway has announced that were not handled yet."""
        return sum(max(0, last - self.states[kind].sequence) for kind, last in self.newest.items())

    def wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait for a condition, which is checked after every frame; return whether it held in time."""
        with self._handled:
            return (
                self._handled.wait_for(lambda: condition() or self.failure is not None, limit_s)
                and self.failure is None
            )

    def ready(self, limit_s: float = 30.0) -> bool:
        """Wait until every topic has begun; return whether it did in time."""
        return self.wait(lambda: self._known == set(self.states), limit_s)

    @property
    def connected(self) -> bool:
        """Whether a socket is open and has delivered the start of each topic."""
        return self._socket is not None and self._served

    def break_socket(self) -> None:
        """Break the open socket, as a network failure would; the client reconnects by itself."""
        socket = self._socket
        if socket is not None:
            socket.socket.shutdown(SHUT_RDWR)

    def start(self) -> "StreamClient":
        self._thread.start()
        return self

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> "StreamClient":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        pause = MIN_PAUSE_S
        poll_until = 0.0
        while not self._stop.is_set():
            gateway = next(self._gateways)
            self._served = False
            try:
                if self._sockets and time.monotonic() >= poll_until:
                    try:
                        self._listen(gateway)
                    except (InvalidHandshake, InvalidURI) as error:
                        self.fault = f"no socket: {error}"
                        poll_until = time.monotonic() + SOCKET_RETRY_S
                else:
                    self._poll(gateway, poll_until)
            except (OSError, ConnectionClosed, TimeoutError, httpx.TransportError, GapError) as error:
                self.fault = str(error)
            except ValidationError as error:
                self.counters.malformed += 1
                self.fault = f"a frame that can't be read: {error.errors()[0]['msg']}"
            except QmtlError as error:
                self.fault = str(error)
                if error.code == "E_SEQUENCE_FUTURE":
                    self._reset()
            except BaseException as error:  # of a callback: `wait` reports it to the caller
                with self._handled:
                    self.failure = error
                    self._handled.notify_all()
                return
            if self._stop.is_set():
                return
            self.counters.reconnects += 1
            pause = MIN_PAUSE_S if self._served else min(MAX_PAUSE_S, pause * 2)
            self._stop.wait(pause)

    def _listen(self, gateway: GatewayClient) -> None:
        subscription = gateway.subscribe(self._wanted, patience_s=0.0)
        with connect(
            subscription.stream_url,
            open_timeout=5.0,
            close_timeout=1.0,
            ping_interval=None,
            max_size=MAX_FRAME,
            compression=None,
            proxy=None,
        ) as socket:
            self._socket = socket
            try:
                socket.send(
                    Hello(token=subscription.token, log=self._log, positions=self.positions).model_dump_json()
                )
                self._frames(gateway, socket, time.monotonic() + subscription.expires_in * 2 / 3)
            except ConnectionClosed as error:
                reason = error.rcvd.reason if error.rcvd else ""
                code = close_code(reason)
                if code:
                    raise QmtlError(code, reason.partition(": ")[2] or reason) from error
                raise
            finally:
                self._socket = None

    def _frames(self, gateway: GatewayClient, socket: ClientConnection, refresh_at: float) -> None:
        received = time.monotonic()
        begun = set[str]()
        while not self._stop.is_set():
            try:
                text = socket.recv(timeout=TICK_S)
            except TimeoutError:
                if time.monotonic() - received > SILENCE_S:
                    raise
            else:
                received = time.monotonic()
                frame = ServerFrame.validate_json(text)
                self._take(frame)
                begun.add(getattr(frame, "topic", ""))
                if not self._served and set(self.states) <= begun:
                    self._served = True
                    self.fault = ""
            if time.monotonic() >= refresh_at:
                fresh = gateway.subscribe(self._wanted, patience_s=0.0)
                socket.send(Refresh(token=fresh.token).model_dump_json())
                refresh_at = time.monotonic() + fresh.expires_in * 2 / 3

    def _poll(self, gateway: GatewayClient, until: float) -> None:
        subscription = gateway.subscribe(self._wanted, patience_s=0.0)
        headers, expires = (
            {"authorization": f"Bearer {subscription.token}"},
            time.monotonic() + subscription.expires_in * 2 / 3,
        )
        with httpx.Client(timeout=10.0, headers=headers, trust_env=False) as http:
            while (
                not self._stop.is_set()
                and time.monotonic() < expires
                and (not self._sockets or time.monotonic() < until)
            ):
                after = [f"{kind}:{sequence}" for kind, sequence in self.positions.items()]
                params: dict[str, Any] = {"after": after, "log": self._log, "wait": TICK_S}
                response = http.get(subscription.poll_url, params=params)
                if response.is_error:
                    body = response.json()
                    raise QmtlError(body["code"], body["detail"], body.get("remedy", ""))
                self.counters.polls += 1
                self._served = True
                polled = Polled.model_validate_json(response.content)
                for kind, found in polled.topics.items():
                    if found.snapshot is not None:
                        self._take(found.snapshot)
                    elif kind not in self._known:
                        raise QmtlError("E_EVENT_INVALID", f"{kind} begins without a snapshot")
                    for item in found.events:
                        self._event(kind, item)
                self._take(HeartbeatFrame(positions=polled.newest))

    def _take(self, frame: Snapshot | Resumed | EventFrame | HeartbeatFrame | Refreshed) -> None:
        self.heard_at = time.monotonic()
        if isinstance(frame, EventFrame):
            self._event(frame.topic, frame)
        elif isinstance(frame, Snapshot):
            state = self.states[frame.topic] = TopicState(frame.sequence, frame.events)
            if state.state_hash != frame.state_hash:
                raise QmtlError("E_EVENT_INVALID", f"the snapshot of {frame.topic} does not match its hash")
            self.counters.snapshots[frame.reason] += 1
            self._begun(frame.topic, frame.log)
            if self._on_snapshot:
                self._on_snapshot(frame.topic, state)
        elif isinstance(frame, Resumed):
            self._begun(frame.topic, frame.log)
        elif isinstance(frame, HeartbeatFrame):
            self.newest |= frame.positions
        with self._handled:
            self._handled.notify_all()

    def _event(self, kind: str, item: Sequenced) -> None:
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
        with self._handled:
            self._handled.notify_all()

    def _begun(self, kind: str, log: str) -> None:
        if log != self._log:
            self._known.clear()
        self._log = log
        self._known.add(kind)

    def _reset(self) -> None:
        self._known.clear()
        self.states = {kind: TopicState() for kind in self.states}
