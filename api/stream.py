"""The stream: every subscriber of this Gateway hears what the ControlBus says, each at its own place.

1. The hub follows the bus once for all of them and keeps each topic's newest frames in memory.
2. A subscriber has a place in each of its topics and pulls what comes after it, from memory or, from further back, from the bus. So there is no queue that
   could overflow, and neither a gap nor a double between what is caught up and what is new.
3. A place that the bus no longer holds, or one in another log, gets a snapshot that says so; a place in the future is refused.
4. Who takes nothing for a while is dropped with a reason; nobody else waits for them.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from activities.events.bus import ControlBus
from api.auth.limits import SocketLimit
from api.auth.tokens import StreamClaims, Tokens
from api.metrics import DELIVERED, DROPPED, SENTINEL_SKEW, UNKNOWN
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.stream import (
    CLOSE_BINARY,
    CLOSE_POLICY,
    CLOSE_SLOW,
    ClientFrame,
    EventFrame,
    HeartbeatFrame,
    Hello,
    Polled,
    PolledTopic,
    Positions,
    Refresh,
    Refreshed,
    Resumed,
    Snapshot,
)
from qmtl_sdk.contracts.topic_state import Sequenced, state_hash
from qmtl_sdk.runtime.config import EventsSettings

POLL_S, KEEP_FRAMES, KEEP_BYTES, BATCH, HELLO_S = 0.02, 5000, 4 * 2**20, 500, 10.0
_log = structlog.get_logger()


class Hub:
    def __init__(
        self, bus: ControlBus, heard: Callable[[Sequence[CloudEvent]], None] = lambda _: None
    ) -> None:
        """`heard` is told of what came, once those whom it concerns have been woken."""
        self.bus, self._heard = bus, heard
        self._frames: dict[str, deque[tuple[int, str]]] = {}
        self._bytes: Counter[str] = Counter()
        self._last: dict[str, int] = {}
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._position = bus.end()

    async def run(self) -> None:
        """Follow the bus until cancelled."""
        while True:
            try:
                found = await self.step()
            except QmtlError as error:
                _log.warning("the bus can't be read now", why=str(error))
                found = 0
            if not found:
                await asyncio.sleep(POLL_S)

    async def step(self) -> int:
        """Take what came to the bus, and wake those whom it concerns; how much it was."""
        found, self._position = await asyncio.to_thread(self.bus.follow, self._position)
        for topic, item in found:
            if item.event.type == "sentinel_weight":
                SENTINEL_SKEW.set((datetime.now(UTC) - item.event.time).total_seconds())
            if kind_in(topic) == "other":
                UNKNOWN.labels(item.event.type).inc()
            self._keep(topic, item)
        for topic in {topic for topic, _ in found}:
            for listener in self._listeners.get(topic, ()):
                listener.set()
        self._heard([item.event for _, item in found])
        return len(found)

    def _keep(self, topic: str, item: Sequenced) -> None:
        if topic not in self._listeners:
            self._bytes.pop(topic, None)
            self._frames.pop(topic, None)  # nobody listens: who comes later reads the bus
            self._last.pop(topic, None)
            return
        frames = self._frames.setdefault(topic, deque())
        if frames and item.sequence != frames[-1][0] + 1:
            frames.clear()
            self._bytes[topic] = 0
        frames.append((item.sequence, frame_text(topic, item)))
        self._bytes[topic] += len(frames[-1][1])
        while self._bytes[topic] > KEEP_BYTES or len(frames) > KEEP_FRAMES:
            self._bytes[topic] -= len(frames.popleft()[1])
        self._last[topic] = item.sequence

    def listen(self, topics: Iterable[str], listener: asyncio.Event) -> None:
        for topic in topics:
            self._listeners.setdefault(topic, set()).add(listener)

    def unlisten(self, topics: Iterable[str], listener: asyncio.Event) -> None:
        for topic in topics:
            found = self._listeners[topic]
            found.discard(listener)
            if not found:
                del self._listeners[topic]

    async def after(self, topic: str, sequence: int) -> list[tuple[int, str]]:
        """The frames after a sequence, up to a batch, without a gap; from the bus where memory does not reach back so far. Raises RetentionError."""
        last = self._last.get(topic)
        if last is not None and last <= sequence:
            return []
        frames = self._frames.get(topic)
        if frames and frames[0][0] <= sequence + 1:
            start = sequence + 1 - frames[0][0]
            return [frames[i] for i in range(start, min(len(frames), start + BATCH))]
        bounds = await asyncio.to_thread(self.bus.bounds, topic)
        found = await asyncio.to_thread(self.bus.read, topic, sequence, BATCH)
        # In this order: an event that comes between the two looks is in the second one. (The other way round it looks as if it had been trimmed.)
        if bounds.first > sequence + 1 or (found and found[0].sequence != sequence + 1):
            raise RetentionError
        if bounds.last == sequence and not found:
            self._last.setdefault(topic, sequence)  # nothing came since: no need to ask the bus again
        return [(item.sequence, frame_text(topic, item)) for item in found]

    async def newest(self, topics: Iterable[str]) -> dict[str, int]:
        return {
            topic: self._last[topic]
            if topic in self._last
            else (await asyncio.to_thread(self.bus.bounds, topic)).last
            for topic in topics
        }

    async def snapshot(self, topic: str, reason: str) -> Snapshot:
        sequence, events = await asyncio.to_thread(self.bus.snapshot, topic)
        found = state_hash({event.subject: event.data for event in events})
        return Snapshot.model_validate(
            {
                "topic": kind_in(topic),
                "log": self.bus.log_id,
                "sequence": sequence,
                "reason": reason,
                "events": events,
                "state_hash": found,
            }
        )

    async def begin(self, topic: str, log: str, position: int | None) -> Snapshot | Resumed:
        """How a subscriber begins: a snapshot, or from its own position on. Raises QmtlError (E_SEQUENCE_FUTURE)."""
        if position is None:
            return await self.snapshot(topic, "first")
        if log != self.bus.log_id:
            return await self.snapshot(topic, "log")
        bounds = await asyncio.to_thread(self.bus.bounds, topic)
        if position > bounds.last:
            raise QmtlError(
                "E_SEQUENCE_FUTURE",
                f"{kind_in(topic)} has come to {bounds.last}, and the client says that it has seen {position}",
                "begin again without a position",
                last=bounds.last,
            )
        if position + 1 < bounds.first:
            return await self.snapshot(topic, "retention")
        return Resumed(topic=kind_in(topic), log=self.bus.log_id, sequence=position)

    async def poll(self, claims: StreamClaims, log: str, positions: Positions, wait_s: float) -> Polled:
        """The same by asking: what each topic said since the given positions. Waits for something new, up to a while."""
        listener, topics = asyncio.Event(), topics_in(claims)
        self.listen(topics, listener)
        try:
            deadline = time.monotonic() + wait_s
            while True:
                listener.clear()
                found = {
                    kind_in(topic): await self._polled(topic, log, positions.get(kind_in(topic)))
                    for topic in topics
                }
                left = deadline - time.monotonic()
                if any(item.snapshot or item.events for item in found.values()) or left <= 0:
                    newest = await self.newest(topics)
                    return Polled(
                        log=self.bus.log_id,
                        topics=found,
                        newest={kind_in(topic): last for topic, last in newest.items()},
                    )
                try:
                    async with asyncio.timeout(left):
                        await listener.wait()
                except TimeoutError:
                    continue  # the loop above answers with nothing new
        finally:
            self.unlisten(topics, listener)

    async def _polled(self, topic: str, log: str, position: int | None) -> PolledTopic:
        begun = await self.begin(topic, log, position)
        events = await asyncio.to_thread(self.bus.read, topic, begun.sequence, BATCH)
        return PolledTopic(snapshot=begun if isinstance(begun, Snapshot) else None, events=tuple(events))


class RetentionError(Exception):
    """What a subscriber needs next is no longer kept."""


class Subscriber:
    """One open socket: says hello, catches up, goes on. There may be thousands, so each is small."""

    __slots__ = (
        "_claims",
        "_config",
        "_deadline",
        "_hub",
        "_news",
        "_places",
        "_revoked",
        "_sending",
        "_socket",
        "_sockets",
        "_tokens",
    )

    def __init__(
        self,
        socket: WebSocket,
        hub: Hub,
        tokens: Tokens,
        sockets: SocketLimit,
        revoked: set[str],
        config: EventsSettings,
    ) -> None:
        self._socket, self._hub, self._tokens, self._sockets, self._revoked, self._config = (
            socket,
            hub,
            tokens,
            sockets,
            revoked,
            config,
        )
        self._news = asyncio.Event()
        self._claims: StreamClaims | None = None
        self._deadline = 0.0
        self._places: dict[str, int] = {}
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        await self._socket.accept()
        nobody = f"address {self._socket.client.host if self._socket.client else ''}"  # who has not said yet who they are counts by address
        try:
            self._sockets.enter(nobody)
            try:
                hello = await self._hello()
            finally:
                self._sockets.leave(nobody)
            log, positions = hello.log, hello.positions
            del hello  # its token is long, and the socket may be open for days
            await self._serve(log, positions)
        except QmtlError as error:
            DROPPED.labels(error.code).inc()
            await self._close(
                CLOSE_BINARY
                if error.code == "E_FRAME_BINARY"
                else CLOSE_SLOW
                if error.code in ("E_SLOW_READER", "E_SOCKETS")
                else CLOSE_POLICY,
                error,
            )
        except WebSocketDisconnect:
            return

    async def _hello(self) -> Hello:
        try:
            async with asyncio.timeout(HELLO_S):
                frame = await self._receive()
        except TimeoutError as error:
            raise QmtlError(
                "E_TOKEN_MISSING", f"no hello within {HELLO_S:g} s", "send a hello frame with the token first"
            ) from error
        if not isinstance(frame, Hello):
            raise QmtlError(
                "E_TOKEN_MISSING",
                f"the first frame is {frame.type}, not hello",
                "send a hello frame with the token first",
            )
        await self._accept(frame.token)
        return frame

    async def _accept(self, token: str) -> None:
        """Go on under this token. Raises QmtlError where it is not good, or is for something else than the one before."""
        claims = await self._tokens.stream(token)
        if self._claims is not None:
            if claims.world_id != self._claims.world_id:
                raise QmtlError(
                    "E_WORLD_FORBIDDEN",
                    f"the stream is of world {self._claims.world_id}, the token is for {claims.world_id}",
                    "open a stream of its own for another world",
                )
            if claims.strategy_id != self._claims.strategy_id:
                raise QmtlError(
                    "E_STRATEGY_FORBIDDEN",
                    "the token is for another strategy",
                    "refresh with a token of the same subscription",
                )
            if not set(self._claims.topics) <= set(claims.topics):
                raise QmtlError(
                    "E_TOPIC_FORBIDDEN",
                    "the token does not have all topics of the stream",
                    "refresh with a token of the same subscription",
                )
            if claims.subject != self._claims.subject:
                raise QmtlError(
                    "E_TOKEN_INVALID",
                    "the token is another caller's",
                    "refresh with a token of the same subscription",
                )
            claims = claims.model_copy(update={"topics": self._claims.topics})
        self._claims, self._deadline = claims, claims.expires_at

    async def _serve(self, log: str, positions: Positions) -> None:
        assert self._claims is not None  # hello brought them
        caller, topics = self._claims.subject, topics_in(self._claims)
        unknown = set(positions) - set(self._claims.topics)
        if unknown:
            raise QmtlError(
                "E_TOPIC_FORBIDDEN",
                f"the token is not for {', '.join(sorted(unknown))[:80]}",
                "subscribe to these topics, or leave out their positions",
            )
        self._sockets.enter(caller)
        self._hub.listen(topics, self._news)
        reader = asyncio.current_task()
        assert reader is not None  # this is one
        writer = asyncio.create_task(self._write(topics, log, positions))

        def wake(_: object) -> None:
            reader.cancel()

        writer.add_done_callback(wake)
        try:
            await self._read()
        except asyncio.CancelledError:
            if not writer.done():
                raise  # the Gateway ends
            reader.uncancel()
            writer.result()
        finally:
            writer.remove_done_callback(wake)
            self._hub.unlisten(topics, self._news)
            self._sockets.leave(caller)  # before anything is awaited: the wake-up may be on its way already
            writer.cancel()

    async def _write(self, topics: list[str], log: str, positions: Positions) -> None:
        for topic in topics:
            await self._begin(topic, log, positions.get(kind_in(topic)))
        beat_at = 0.0
        while True:
            self._news.clear()
            sent = False
            for topic in topics:
                try:
                    frames = await self._hub.after(topic, self._places[topic])
                except RetentionError:
                    await self._tell((await self._snapshot(topic, "retention")).model_dump_json())
                    sent = True
                    continue
                for sequence, text in frames:
                    await self._tell(text)
                    self._places[topic] = sequence
                    sent = True
            self._require_token()
            if time.monotonic() >= beat_at:
                newest = await self._hub.newest(topics)
                await self._tell(
                    HeartbeatFrame(
                        positions={kind_in(topic): last for topic, last in newest.items()}
                    ).model_dump_json()
                )
                beat_at = time.monotonic() + self._config.beat_s
            if not sent:
                try:
                    async with asyncio.timeout(
                        max(0.01, min(beat_at - time.monotonic(), self._deadline - time.time()))
                    ):
                        await self._news.wait()
                except TimeoutError:
                    continue  # time for a beat, or for the token's end

    async def _begin(self, topic: str, log: str, position: int | None) -> None:
        begun = await self._hub.begin(topic, log, position)
        self._places[topic] = begun.sequence
        await self._tell(begun.model_dump_json())

    async def _snapshot(self, topic: str, reason: str) -> Snapshot:
        found = await self._hub.snapshot(topic, reason)
        self._places[topic] = found.sequence
        return found

    def _require_token(self) -> None:
        assert self._claims is not None  # hello brought them
        if time.time() > self._deadline:
            raise QmtlError(
                "E_TOKEN_EXPIRED",
                "the stream's token has expired",
                "refresh it on the open socket before it does",
            )
        if self._claims.parent in self._revoked:
            raise QmtlError(
                "E_TOKEN_REVOKED",
                "the token was taken back",
                "ask an operator for a new one: qmtl token create",
            )

    async def _read(self) -> None:
        while True:
            frame = await self._receive()
            if isinstance(frame, Refresh):
                await self._accept(frame.token)
                await self._tell(Refreshed(expires_in=self._deadline - time.time()).model_dump_json())
                self._news.set()
            else:
                raise QmtlError("E_FRAME", "hello came twice", "say it once")

    async def _receive(self) -> Hello | Refresh:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if message.get("text") is None:
            raise QmtlError("E_FRAME_BINARY", "the stream speaks text", "send JSON in text frames")
        try:
            return ClientFrame.validate_json(message["text"])
        except ValueError as error:
            raise QmtlError(
                "E_FRAME", "the frame is neither hello nor refresh", "see /events/schema"
            ) from error

    async def _tell(self, text: str) -> None:
        """Send a frame. Raises QmtlError (E_SLOW_READER) where the client takes nothing for too long."""
        try:
            async with asyncio.timeout(self._config.slow_reader_s), self._sending:
                await self._socket.send_text(text)
        except TimeoutError as error:
            raise QmtlError(
                "E_SLOW_READER",
                f"the client took nothing for {self._config.slow_reader_s:g} s",
                "read faster, or subscribe to fewer topics, and come back with the last sequence",
            ) from error
        DELIVERED.inc()

    async def _close(self, code: int, error: QmtlError) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self._socket.close(code, f"{error.code}: {error.message}"[:120])
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            _log.info("a stream was cut", code=error.code)  # it does not take the close frame either


async def watch_revoked(tokens: Tokens, revoked: set[str], every_s: float = 1.0) -> None:
    """Keep the set of tokens that were taken back: streams under them are closed."""
    while True:
        try:
            revoked.update(await asyncio.to_thread(tokens.revoked))
        except QmtlError as error:
            _log.warning("the register of tokens can't be read now", why=str(error))
        await asyncio.sleep(every_s)


def topics_in(claims: StreamClaims) -> list[str]:
    return [f"{claims.world_id}.{kind}" for kind in claims.topics]


def kind_in(topic: str) -> str:
    return topic.rpartition(".")[2]


def frame_text(topic: str, item: Sequenced) -> str:
    return EventFrame(topic=kind_in(topic), sequence=item.sequence, event=item.event).model_dump_json()
