"""`Runner`: submit strategies, and end what their submissions have started.

A strategy that its world activated runs in this process until `shutdown`, the end of its `session` block, or
the end of the process. A script waits for its running strategies when it ends; Ctrl-C stops them.
"""

import asyncio
import atexit
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from datetime import datetime
from typing import Any, ClassVar, Literal, TypedDict, Unpack
from weakref import WeakSet

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.runtime.config import Settings, settings
from qmtl_sdk.runtime.leased import StoppedError
from qmtl_sdk.runtime.manual_gate import ManualOrderGate, TradeExecutionService
from qmtl_sdk.runtime.orders import OnVerdict
from qmtl_sdk.runtime.result import SubmitResult
from qmtl_sdk.runtime.rows import OnOutput
from qmtl_sdk.runtime.running import RunningStrategy
from qmtl_sdk.runtime.signals import sigterm_as_interrupt
from qmtl_sdk.runtime.submission import Author, Submission, SubmitOptions
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

SHUTDOWN_S = 30.0
"""How long `Runner.shutdown` waits for a submission to stop, in seconds."""

EXIT_POLL_S = 0.2
"""How often a script that has ended checks whether its strategies still run, in seconds."""


class SubmitArguments(TypedDict, total=False):
    """The keyword arguments of `Runner.submit` besides `world`."""

    as_of: datetime | str | None
    parity: Literal["sample", "full"]
    progress: bool | None
    decision_timeout_s: float
    run: bool
    shadow: bool
    on_output: OnOutput | None
    on_verdict: OnVerdict | None
    config: Settings | None


class Runner:
    """The entry point of the SDK. There is no client-side mode: the world decides what runs where."""

    _open: ClassVar["WeakSet[Submission]"] = WeakSet()
    _running: ClassVar[list[RunningStrategy]] = []
    orders: ClassVar[ManualOrderGate] = ManualOrderGate()

    @classmethod
    def submit(cls, strategy: Author, *, world: str, **options: Unpack[SubmitArguments]) -> SubmitResult:
        """Submit, compute, and wait for the decision. Works in a script and in a notebook, which it blocks.

        `as_of` pins the data to the bars that had closed by then. `parity="full"` compares every bar of batch
        and bar-by-bar execution, `"sample"` some. `progress` shows or hides the progress line.
        `decision_timeout_s` (default 600) limits the wait for the decision. `run=False` does not start the
        strategy. `shadow` runs it on live inputs without orders; only an operator may request it. `on_output`
        receives every output row while the strategy runs, `on_verdict` every order with the fence's verdict.

        Raises QmtlError if the strategy can't be built or computed, or is refused; never for a missing or
        stale decision. Where no Gateway answers for half a minute, it is only computed, in safe mode, and the
        result's `error_code` is E_UNAVAILABLE.
        """
        submission = _submission(strategy, world, options)
        cls._open.add(submission)
        try:
            return cls._register(submission.run())
        finally:
            submission.close()

    @classmethod
    async def submit_async(
        cls, strategy: Author, *, world: str, **options: Unpack[SubmitArguments]
    ) -> SubmitResult:
        """`submit` without blocking the event loop. Cancelling it releases the lease, as Ctrl-C does."""
        submission = _submission(strategy, world, options)
        cls._open.add(submission)
        work = asyncio.create_task(asyncio.to_thread(submission.run))
        try:
            return cls._register(await asyncio.shield(work))
        except asyncio.CancelledError:
            submission.stop.set()
            with suppress(StoppedError):
                result = await work
                if result.running is not None:  # it was past its last check of `stop`; nobody else has it
                    await asyncio.to_thread(result.running.close)
            raise
        finally:
            submission.close()

    @classmethod
    def session(cls, strategy: Author, *, world: str, **options: Unpack[SubmitArguments]) -> "_Session":
        """Submit in a `with` or `async with` block; its end stops everything that the submission started."""
        return _Session(strategy, world, options)

    @classmethod
    def shutdown(cls, result: SubmitResult | None = None) -> None:
        """Release the leases, stop the running strategies and close the connections of this process.

        With a result, only those of its strategy. Safe to call repeatedly.
        """
        for submission in list(cls._open):
            if result is None or submission.strategy_id == result.strategy_id:
                submission.stop.set()
                submission.done.wait(SHUTDOWN_S)
        for running in list(cls._running):
            if result is None or running is result.running:
                cls._running.remove(running)
                running.close()

    @classmethod
    def _register(cls, result: SubmitResult) -> SubmitResult:
        """Remember a running strategy, so that the process does not end before it."""
        if result.running is not None:
            if not cls._running:
                atexit.unregister(_wait_at_exit)
                atexit.register(_wait_at_exit)
            cls._running.append(result.running)
        return result

    @classmethod
    def set_enable_trade_submission(cls, enabled: bool) -> None:
        """Turn the orders of strategies that are fed by hand on or off."""
        cls.orders.enabled = enabled

    @classmethod
    def set_trade_execution_service(cls, service: TradeExecutionService | None) -> None:
        """Set the service that receives these orders."""
        cls.orders.service = service

    @classmethod
    def feed_queue_data(
        cls, node: Node, queue_id: str, interval: int, timestamp: int, payload: Mapping[str, Any]
    ) -> None:
        """Feed an input's row to a node, as its queue would; a publisher checks its gate.

        Raises QmtlError: E_NODE_INPUT for a queue that is not an input of the node, E_INTERVAL for another
        interval.
        """
        if queue_id not in {parent.node_id for parent in node.inputs}:
            raise QmtlError(
                "E_NODE_INPUT",
                f"{queue_id[:15]} is not an input of {node.label}",
                "feed the NodeID of one of its inputs",
            )
        if interval != node.interval:
            raise QmtlError(
                "E_INTERVAL",
                f"{node.label} has an interval of {node.interval} s, not {interval} s",
                "feed rows of its own interval",
            )
        if isinstance(node, TradeOrderPublisherNode):
            order = node.order(payload)
            if order is not None:
                cls.orders.send({**order, "timestamp": timestamp}, node.context)


def _submission(strategy: Author, world: str, options: SubmitArguments) -> Submission:
    """Build a submission from the arguments of `Runner.submit`."""
    arguments: dict[str, Any] = dict(options)  # Any: the values keep the types of `SubmitArguments`
    config = arguments.pop("config", None) or settings()
    return Submission(strategy, world, SubmitOptions(**arguments), config)


def _wait_at_exit() -> None:
    """Wait at the end of a script while its strategies run; a notebook or prompt stops them."""
    interactive = hasattr(sys, "ps1") or "ipykernel" in sys.modules
    try:
        with sigterm_as_interrupt():
            while not interactive and any(running.alive for running in Runner._running):
                time.sleep(EXIT_POLL_S)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    Runner.shutdown()


class _Session(AbstractContextManager[SubmitResult], AbstractAsyncContextManager[SubmitResult]):
    """The context manager of `Runner.session`."""

    def __init__(self, strategy: Author, world: str, options: SubmitArguments) -> None:
        self._strategy = strategy
        self._world = world
        self._options = options
        self._result: SubmitResult | None = None

    def __enter__(self) -> SubmitResult:
        self._result = Runner.submit(self._strategy, world=self._world, **self._options)
        return self._result

    def __exit__(self, *_: object) -> None:
        Runner.shutdown(self._result)

    async def __aenter__(self) -> SubmitResult:
        self._result = await Runner.submit_async(self._strategy, world=self._world, **self._options)
        return self._result

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(Runner.shutdown, self._result)
