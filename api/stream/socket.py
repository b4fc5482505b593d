"""Frames on a WebSocket: receive, send within a time limit, close with a code."""

import asyncio

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.metrics import FRAMES_SENT
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.stream import CLOSE_BINARY, CLOSE_POLICY, CLOSE_SLOW, ClientFrame, Hello, Refresh

CLOSE_LIMIT_S = 1.0
"""Seconds that a client has to take the close frame."""
MAX_REASON = 120
"""Characters of a close reason: a control frame carries at most 125 bytes, two of them the code."""
_CLOSE_CODES = {"E_FRAME_BINARY": CLOSE_BINARY, "E_SLOW_READER": CLOSE_SLOW, "E_SOCKETS": CLOSE_SLOW}

_log = structlog.get_logger()


class FrameSocket:
    """A WebSocket that carries frames as JSON text. Sends are serialised: reader and writer both send."""

    __slots__ = ("_sending", "_slow_reader_s", "_socket")

    def __init__(self, socket: WebSocket, slow_reader_s: float) -> None:
        """`slow_reader_s`: seconds after which a client that takes nothing is closed."""
        self._socket = socket
        self._slow_reader_s = slow_reader_s
        self._sending = asyncio.Lock()

    @property
    def address(self) -> str:
        """The client's IP address; empty where the server does not know it."""
        return self._socket.client.host if self._socket.client else ""

    async def accept(self) -> None:
        """Accept the connection."""
        await self._socket.accept()

    async def receive(self) -> Hello | Refresh:
        """Return the next frame.

        Raises WebSocketDisconnect, and QmtlError: E_FRAME_BINARY; E_FRAME where it is not hello or refresh.
        """
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if message.get("text") is None:
            raise QmtlError("E_FRAME_BINARY", "the frame is binary", "send JSON in text frames")
        try:
            return ClientFrame.validate_json(message["text"])
        except ValueError as error:
            raise QmtlError(
                "E_FRAME", "the frame is neither hello nor refresh", "GET /events/schema has the schema"
            ) from error

    async def send(self, text: str) -> None:
        """Send a frame. Raises QmtlError: E_SLOW_READER where the client takes nothing for too long."""
        try:
            async with asyncio.timeout(self._slow_reader_s), self._sending:
                await self._socket.send_text(text)
        except TimeoutError as error:
            raise QmtlError(
                "E_SLOW_READER",
                f"the client took nothing for {self._slow_reader_s:g} s",
                "read faster or subscribe to fewer topics, and reconnect with the last sequence",
            ) from error
        FRAMES_SENT.inc()

    async def close(self, error: QmtlError) -> None:
        """Close the socket with the error's code and message."""
        code = _CLOSE_CODES.get(error.code, CLOSE_POLICY)
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._socket.close(code, f"{error.code}: {error.message}"[:MAX_REASON])
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            _log.info("a client did not take the close frame", code=error.code)
