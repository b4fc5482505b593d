"""A real Temporal server with a worker in this process, over a world in a store of its own."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.settings import Settings, TemporalSettings
from activities.stores import Stores
from qmtl_sdk.contracts.policy import Policy
from temporal.applies import ApplyService
from temporal.client import connect
from temporal.server import LocalServer, find_or_install, free_port, stop_process
from temporal.versions import Versions
from temporal.worker import serving
from tests.support.desk import Desk, policy

T = TypeVar("T")
Hook = Callable[[], Awaitable[None]]


class Hooks(Interceptor):
    """Calls a hook of the test before or after an activity, or in its thread, by the activity's name."""

    def __init__(self) -> None:
        self.before: dict[str, Hook] = {}
        self.after: dict[str, Hook] = {}
        self.in_thread: dict[str, Callable[[], object]] = {}

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Hooked(next, self)


class _Hooked(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, hooks: Hooks) -> None:
        super().__init__(next)
        self._hooks = hooks

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        name = activity.info().activity_type
        if name in self._hooks.before:
            await self._hooks.before[name]()
        if name in self._hooks.in_thread:
            input.fn = _after(self._hooks.in_thread[name], input.fn)
        result = await super().execute_activity(input)
        if name in self._hooks.after:
            await self._hooks.after[name]()
        return result


def _after(hook: Callable[[], object], call: Callable[..., Any]) -> Callable[..., Any]:
    """Build a synchronous activity that calls the hook first. (Any: each takes a message of its own.)"""

    def run(*arguments: Any) -> Any:
        hook()
        return call(*arguments)

    return run


@dataclass
class Served:
    """The client, the stores and the world, and the hooks of the worker."""

    client: Client
    stores: Stores
    desk: Desk
    hooks: Hooks

    @property
    def store_id(self) -> str:
        return self.stores.database.store_id

    @property
    def applies(self) -> ApplyService:
        """As a Gateway has it."""
        stores = self.stores
        return ApplyService(
            self.client, self.store_id, stores.apply_requests, stores.approvals, stores.apply_steps
        )


async def until(condition: Callable[[], Awaitable[T]], what: str, limit_s: float = 30.0) -> T:
    """The condition's first true answer."""
    deadline = time.monotonic() + limit_s
    while not (answer := await condition()):
        assert time.monotonic() < deadline, f"no {what} within {limit_s} s"
        await asyncio.sleep(0.02)
    return answer


@asynccontextmanager
async def served(
    home: Path, found: Policy | None = None, history_limit: int | None = None, worker: bool = True
) -> AsyncIterator[Served]:
    base = Settings(_env_file=None)  # type: ignore[call-arg]
    binary = find_or_install(base.tools_dir, base.temporal.binary)
    server = LocalServer(binary, home / "temporal", free_port(), free_port())
    server.history_limit = history_limit
    server.start()
    try:
        with closing(Stores.open(Settings(home=home))) as stores:
            desk = Desk(stores.database, found=found or policy())
            client = await connect(TemporalSettings(address=server.address), stores.database.store_id)
            hooks = Hooks()
            async with serving(client, stores, [hooks], "test") if worker else nullcontext():
                if worker:
                    await Versions(client, "test").begin()
                yield Served(client, stores, desk, hooks)
    finally:
        assert server.process is not None  # started above
        stop_process(server.process.pid)
        server.process.wait()
