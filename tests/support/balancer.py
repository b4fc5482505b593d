"""A load balancer in front of Gateways: each new connection goes to the next one that accepts it."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Sequence

_CHUNK = 65536


class Balancer:
    """Listens on `port` of the loopback between `start` and `stop`, on a thread of its own."""

    def __init__(self, port: int, backends: Sequence[int]) -> None:
        """`backends`: the ports to which connections go in turn."""
        self._port = port
        self._turns = itertools.cycle(backends)
        self._count = len(backends)
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="balancer")

    def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed

    def stop(self) -> None:
        """End the listening and every connection."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._listen())
            except OSError as error:
                self._failed = error
            finally:
                self._ready.set()

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", self._port)
        self._ready.set()
        await self._over.wait()
        server.close()
        # The end of the loop cancels the connections.

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection to a Gateway; close it where none accepts it."""
        with contextlib.closing(writer):
            for _ in range(self._count):
                try:
                    behind, before = await asyncio.open_connection("127.0.0.1", next(self._turns))
                except OSError:
                    continue
                with contextlib.closing(before):
                    await asyncio.gather(_pump(reader, before), _pump(behind, writer))
                return


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end of what is read, or until either side breaks off."""
    try:
        while part := await reader.read(_CHUNK):
            writer.write(part)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
