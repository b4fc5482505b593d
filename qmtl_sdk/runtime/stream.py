"""Read a world's stream: a thread keeps each topic's state and passes on every event once, in order.

1. Subscribe at a Gateway (at each try the next of several), open the socket, send the last sequences handled.
2. The Gateway sends a snapshot of each topic or the missed events, then new events. `TopicReader` applies
   each to the topic's state and passes it on. A gap makes the client reconnect from its position.
3. The token is refreshed on the open socket. A socket that is silent or breaks is opened again.
4. Where sockets are blocked, or a frame is too large for one, the client polls by HTTP and retries the socket
   every `SOCKET_RETRY_S`.
"""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from socket import SHUT_RDWR
from types import TracebackType
from typing import Any

import httpx
from pydantic import ValidationError
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.stream import (
    Hello,
    Polled,
    Refresh,
    ServerFrame,
    Subscribe,
    Subscription,
    close_code,
)
from qmtl_sdk.contracts.topic_state import GapError, TopicState
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.transport import refusal
from qmtl_sdk.runtime.stream_counters import StreamCounters
from qmtl_sdk.runtime.topic_reader import OnEvent, OnSnapshot, TopicReader

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
"""The largest frame of a socket that is accepted, in bytes. What is larger is polled, such as the snapshot of
a topic with many thousands of queues."""


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
        self._reader = TopicReader(wanted.topics, on_event, on_snapshot)
        self.fault = ""
        self.failure: BaseException | None = None
        self._poll_until = 0.0
        self._delivered_all = False
        self._stop = threading.Event()
        self._socket: ClientConnection | None = None
        self._thread = threading.Thread(target=self._run, name="qmtl-stream", daemon=True)

    @property
    def states(self) -> dict[str, TopicState]:
        """The state of each topic."""
        return self._reader.states

    @property
    def counters(self) -> StreamCounters:
        """What was received."""
        return self._reader.counters

    @property
    def last_frame_at(self) -> float:
        """The monotonic time of the Gateway's last frame; minus infinity before the first."""
        return self._reader.last_frame_at

    @property
    def positions(self) -> dict[str, int]:
        """The last sequence handled, by topic; without the topics that have not started."""
        return self._reader.positions

    @property
    def behind(self) -> int:
        """How many events the Gateway has announced that were not handled yet."""
        return self._reader.behind

    @property
    def connected(self) -> bool:
        """Whether a socket is open and has delivered the start of each topic."""
        return self._socket is not None and self._delivered_all

    def wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait for a condition, which is checked after every frame; return whether it held in time."""
        handled = self._reader.handled
        with handled:
            return (
                handled.wait_for(lambda: condition() or self.failure is not None, limit_s)
                and self.failure is None
            )

    def ready(self, limit_s: float = 30.0) -> bool:
        """Wait until every topic has started; return whether it did in time."""
        return self.wait(lambda: self._reader.started == set(self.states), limit_s)

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
        while not self._stop.is_set():
            gateway = next(self._gateways)
            self._delivered_all = False
            try:
                self._read(gateway)
            except (OSError, ConnectionClosed, TimeoutError, httpx.TransportError, GapError) as error:
                self.fault = str(error)
            except ValidationError as error:
                self.counters.malformed += 1
                self.fault = f"a frame that can't be read: {error.errors()[0]['msg']}"
            except QmtlError as error:
                self.fault = str(error)
                if error.code == "E_SEQUENCE_FUTURE":
                    self._reader.reset()
            except BaseException as error:  # of a callback: `wait` reports it to the caller
                with self._reader.handled:
                    self.fault = f"the stream has ended: {type(error).__name__}: {error}"
                    self.failure = error
                    self._reader.handled.notify_all()
                return
            if self._stop.is_set():
                return
            self.counters.reconnects += 1
            pause = MIN_PAUSE_S if self._delivered_all else min(MAX_PAUSE_S, pause * 2)
            self._stop.wait(pause)

    def _read(self, gateway: GatewayClient) -> None:
        """Read from a Gateway until the connection ends: by a socket, or by polls where none can be used."""
        if not self._sockets or time.monotonic() < self._poll_until:
            self._poll(gateway)
            return
        try:
            self._listen(gateway)
        except (InvalidHandshake, InvalidURI, ConnectionClosed) as error:
            if isinstance(error, ConnectionClosed) and not _met_too_large_a_frame(error):
                raise
            self.fault = f"no socket: {error}"
            self._poll_until = time.monotonic() + SOCKET_RETRY_S

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
                hello = Hello(token=subscription.token, log=self._reader.log, positions=self.positions)
                socket.send(hello.model_dump_json())
                self._read_frames(gateway, socket, _refresh_at(subscription))
            except ConnectionClosed as error:
                reason = error.rcvd.reason if error.rcvd else ""
                code = close_code(reason)
                if code:
                    raise QmtlError(code, reason.partition(": ")[2] or reason) from error
                raise
            finally:
                self._socket = None

    def _read_frames(self, gateway: GatewayClient, socket: ClientConnection, refresh_at: float) -> None:
        received = time.monotonic()
        delivered = set[str]()
        while not self._stop.is_set():
            try:
                text = socket.recv(timeout=TICK_S)
            except TimeoutError:
                if time.monotonic() - received > SILENCE_S:
                    raise
            else:
                received = time.monotonic()
                frame = ServerFrame.validate_json(text)
                self._reader.apply(frame)
                delivered.add(getattr(frame, "topic", ""))
                if not self._delivered_all and set(self.states) <= delivered:
                    self._delivered_all = True
                    self.fault = ""
            if time.monotonic() >= refresh_at:
                fresh = gateway.subscribe(self._wanted, patience_s=0.0)
                socket.send(Refresh(token=fresh.token).model_dump_json())
                refresh_at = _refresh_at(fresh)

    def _poll(self, gateway: GatewayClient) -> None:
        subscription = gateway.subscribe(self._wanted, patience_s=0.0)
        headers = {"authorization": f"Bearer {subscription.token}"}
        refresh_at = _refresh_at(subscription)
        with httpx.Client(timeout=10.0, headers=headers, trust_env=False) as http:
            while (
                not self._stop.is_set()
                and time.monotonic() < refresh_at
                and (not self._sockets or time.monotonic() < self._poll_until)
            ):
                after = [f"{kind}:{sequence}" for kind, sequence in self.positions.items()]
                params: dict[str, Any] = {"after": after, "log": self._reader.log, "wait": TICK_S}
                response = http.get(subscription.poll_url, params=params)
                if not response.is_success:
                    raise refusal(response)
                self.counters.polls += 1
                self._reader.apply_poll(Polled.model_validate_json(response.content))
                self._delivered_all = True


def _met_too_large_a_frame(error: ConnectionClosed) -> bool:
    """Return whether this client closed a socket because a frame was larger than `MAX_FRAME`."""
    return error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG


def _refresh_at(subscription: Subscription) -> float:
    """Return the monotonic time at which a new token is due: while a third of the old one's time is left."""
    return time.monotonic() + subscription.expires_in * 2 / 3
