"""Whether a token stands in the register, asked by many requests at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from activities.access.sql import SqlTokenStore, TokenState


class TokenRegister:
    """The register's word on a request's token, for requests on one event loop.

    Requests that come while one look is under way share the next: a request is always answered by a look that began after it came, so that a token that was taken back
    is refused at once, and many requests at once don't each wait for a thread.
    """

    def __init__(self, store: SqlTokenStore) -> None:
        self._store, self._thread = (
            store,
            ThreadPoolExecutor(1, "register"),
        )  # of its own: nobody is known while it waits
        self._waiting: list[tuple[str, asyncio.Future[TokenState]]] = []
        self._looking: asyncio.Task[None] | None = None

    async def state(self, token_id: str) -> TokenState:
        answer: asyncio.Future[TokenState] = asyncio.get_running_loop().create_future()
        self._waiting.append((token_id, answer))
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return await answer

    async def _look(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, []
                try:
                    states = await asyncio.get_running_loop().run_in_executor(
                        self._thread, self._store.states, {token_id for token_id, _ in asked}
                    )
                except Exception as error:  # whoever asked gets it
                    for _, answer in asked:
                        if not answer.done():  # a request may have gone away meanwhile
                            answer.set_exception(error)
                else:
                    for token_id, answer in asked:
                        if not answer.done():
                            answer.set_result(states[token_id])
        finally:
            self._looking = None
