"""Read the token register for many concurrent requests at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from activities.access.sql import SqlTokenStore, TokenState


class TokenRegister:
    """Reads whether tokens are valid, for requests on one event loop.

    Requests that arrive during a read share the next one. So a request is always answered by a read that
    began after it arrived, a revoked token is refused at once, and requests do not each wait for a thread.
    """

    def __init__(self, store: SqlTokenStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "register")  # its own: while it waits, no caller is known
        self._waiting: list[tuple[str, asyncio.Future[TokenState]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def state(self, token_id: str) -> TokenState:
        """Return whether a token is good, revoked or unknown."""
        result: asyncio.Future[TokenState] = asyncio.get_running_loop().create_future()
        self._waiting.append((token_id, result))
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return await result

    async def _read(self) -> None:
        """Read batch after batch until no request waits. An error is raised in the requests of its batch."""
        try:
            while self._waiting:
                batch = self._waiting
                self._waiting = []
                try:
                    states = await asyncio.get_running_loop().run_in_executor(
                        self._thread, self._store.states, {token_id for token_id, _ in batch}
                    )
                except Exception as error:
                    for _, result in batch:
                        if not result.done():  # a cancelled request is done
                            result.set_exception(error)
                else:
                    for token_id, result in batch:
                        if not result.done():
                            result.set_result(states[token_id])
        finally:
            self._reading = None
