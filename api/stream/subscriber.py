"""One open stream, from its hello to its end."""

import asyncio
import time

from starlette.websockets import WebSocket, WebSocketDisconnect

from activities.settings import EventsSettings
from api.auth.limits import SocketLimit
from api.metrics import STREAMS_CLOSED
from api.stream.authorization import StreamAuthorization
from api.stream.hub import Hub, RetentionError
from api.stream.socket import FrameSocket
from api.stream.topics import kind_of_topic, topics_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.stream import HeartbeatFrame, Hello, Positions, Refresh, Refreshed

HELLO_S = 10.0
"""Seconds that a client has to send its hello."""
MIN_WAIT_S = 0.01
"""Shortest wait for news, so that a heartbeat that is due does not spin."""


class Subscriber:
    """Serves one socket: reads hello, sends what was missed, then what is new, and heartbeats.

    There may be thousands of them, so each is small.
    """

    __slots__ = ("_authorization", "_config", "_hub", "_news", "_positions", "_socket", "_sockets")

    def __init__(
        self,
        socket: WebSocket,
        hub: Hub,
        authorization: StreamAuthorization,
        sockets: SocketLimit,
        config: EventsSettings,
    ) -> None:
        self._socket = FrameSocket(socket, config.slow_reader_s)
        self._hub = hub
        self._authorization = authorization
        self._sockets = sockets
        self._config = config
        self._news = asyncio.Event()
        self._positions: dict[str, int] = {}

    async def run(self) -> None:
        """Serve the socket until it closes; close it with a code where the stream must end."""
        await self._socket.accept()
        try:
            log, positions = await self._hello()
            await self._serve(log, positions)
        except QmtlError as error:
            STREAMS_CLOSED.labels(error.code).inc()
            await self._socket.close(error)
        except WebSocketDisconnect:
            return

    async def _hello(self) -> tuple[str, Positions]:
        """Read hello and accept its token; until then the socket counts against its address.

        Returns the log and the positions that the client has. The frame itself is dropped: its token is long.
        Raises QmtlError: E_SOCKETS, E_TOKEN_MISSING, and what the token is refused with.
        """
        anonymous = f"address {self._socket.address}"
        self._sockets.enter(anonymous)
        try:
            async with asyncio.timeout(HELLO_S):
                frame = await self._socket.receive()
            if not isinstance(frame, Hello):
                raise _no_hello(f"the first frame is {frame.type}, not hello")
            await self._authorization.accept(frame.token)
            return frame.log, frame.positions
        except TimeoutError as error:
            raise _no_hello(f"no hello within {HELLO_S:g} s") from error
        finally:
            self._sockets.leave(anonymous)

    async def _serve(self, log: str, positions: Positions) -> None:
        """Read and write at the same time; the end of either ends both."""
        claims = self._authorization.claims
        topics = topics_of(claims)
        unknown = set(positions) - set(claims.topics)
        if unknown:
            raise QmtlError(
                "E_TOPIC_FORBIDDEN",
                f"the token is not for {', '.join(sorted(unknown))[:80]}",
                "subscribe to these topics, or leave out their positions",
            )
        self._sockets.enter(claims.subject)
        self._hub.listen(topics, self._news)
        reader = asyncio.current_task()
        assert reader is not None  # a coroutine runs in a task
        writer = asyncio.create_task(self._write(topics, log, positions))

        def stop_reader(_: object) -> None:
            reader.cancel()

        writer.add_done_callback(stop_reader)
        try:
            await self._read()
        except asyncio.CancelledError:
            if not writer.done():
                raise  # the Gateway stops
            reader.uncancel()
            writer.result()
        finally:
            writer.remove_done_callback(stop_reader)
            self._hub.unlisten(topics, self._news)
            self._sockets.leave(claims.subject)  # before any await: the reader may be cancelled again there
            writer.cancel()

    async def _write(self, topics: list[str], log: str, positions: Positions) -> None:
        for topic in topics:
            begun = await self._hub.begin(topic, log, positions.get(kind_of_topic(topic)))
            self._positions[topic] = begun.sequence
            await self._socket.send(begun.model_dump_json())
        heartbeat_at = 0.0
        while True:
            self._news.clear()
            sent = False
            for topic in topics:
                sent |= await self._send_news(topic)
            self._authorization.require_valid()
            if time.monotonic() >= heartbeat_at:
                await self._send_heartbeat(topics)
                heartbeat_at = time.monotonic() + self._config.heartbeat_s
            if not sent:
                await self._wait_for_news(heartbeat_at)

    async def _send_news(self, topic: str) -> bool:
        """Send what a topic published after the subscriber's position; return whether there was anything."""
        try:
            frames = await self._hub.after(topic, self._positions[topic])
        except RetentionError:
            snapshot = await self._hub.snapshot(topic, "retention")
            self._positions[topic] = snapshot.sequence
            await self._socket.send(snapshot.model_dump_json())
            return True
        for sequence, text in frames:
            await self._socket.send(text)
            self._positions[topic] = sequence
        return bool(frames)

    async def _send_heartbeat(self, topics: list[str]) -> None:
        newest = await self._hub.newest(topics)
        frame = HeartbeatFrame(positions={kind_of_topic(topic): last for topic, last in newest.items()})
        await self._socket.send(frame.model_dump_json())

    async def _wait_for_news(self, heartbeat_at: float) -> None:
        """Wait for an event, at most until the next heartbeat or the token's end."""
        left = min(heartbeat_at - time.monotonic(), self._authorization.expires_in_s)
        try:
            async with asyncio.timeout(max(MIN_WAIT_S, left)):
                await self._news.wait()
        except TimeoutError:
            return

    async def _read(self) -> None:
        while True:
            frame = await self._socket.receive()
            if not isinstance(frame, Refresh):
                raise QmtlError("E_FRAME", "a second hello was received", "send hello once")
            await self._authorization.accept(frame.token)
            refreshed = Refreshed(expires_in=self._authorization.expires_in_s)
            await self._socket.send(refreshed.model_dump_json())
            self._news.set()


def _no_hello(message: str) -> QmtlError:
    return QmtlError("E_TOKEN_MISSING", message, "send a hello frame with the token first")
