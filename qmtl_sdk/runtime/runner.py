"""`Runner.submit`: from a strategy class to the world's decision.

1. Build the DAG and check it here (`Build`).
2. Find the Gateway; where none is configured and none runs, start the embedded stack and say so.
3. Post the submission. The ack carries the context, the data and, unless someone computes it already, a lease.
4. Compute under the lease, upload the returns by content hash, hand them in.
5. Wait for the decision. Where it can't be had, or is too old, the result says so: computed only, safe mode, orders off.
6. Where the world switched the strategy on for paper (or live), or shadow was asked for, it goes on running in this process, on threads of its own, until
   `shutdown`, the end of the `session` block, or the end of the process. A script waits for that at its end; Ctrl-C ends it.

Everything may be interrupted and submitted again: outputs are cached, and the lease is taken up where it was left.
"""

import asyncio
import atexit
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal
from weakref import WeakSet

from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.domains import (
    DEFAULT_TTL_S,
    ComputeContext,
    DataScope,
    Domain,
    Downgrade,
    resolve_context,
)
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import SessionGrant
from qmtl_sdk.contracts.submission import (
    EvidenceRef,
    Heartbeat,
    LeaseFailure,
    QueueTarget,
    StrategyStatus,
    StrategySubmit,
    SubmissionAck,
    SubmissionMeta,
    SubmissionOutcome,
)
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.nodes.strategy import BuiltStrategy, Strategy
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.runtime import embedded
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.computation import Computed, compute_strategy, newest_own_close
from qmtl_sdk.runtime.config import Settings, settings
from qmtl_sdk.runtime.identity import RunnerName
from qmtl_sdk.runtime.lease import Heartbeats
from qmtl_sdk.runtime.orders import OnVerdict, OrderGate, TradeExecutionService
from qmtl_sdk.runtime.progress import ProgressDisplay
from qmtl_sdk.runtime.result import NodeCounts, SubmitResult, WorldView
from qmtl_sdk.runtime.running import OnOutput, RunningStrategy
from qmtl_sdk.transforms.publisher import TradeOrderPublisherNode

_POLL_S, _SHUTDOWN_S = 5.0, 30.0


class StoppedError(Exception):
    """The submission was told to stop: its task was cancelled, or `Runner.shutdown` was called. (A KeyboardInterrupt would end the running loop.)"""


Author = Strategy | type[Strategy]


class Runner:
    """The one entry point: there is no client-side mode. What runs where is the world's to decide."""

    _open: ClassVar["WeakSet[_Submission]"] = WeakSet()
    _running: ClassVar[list[RunningStrategy]] = []
    orders: ClassVar[OrderGate] = OrderGate()

    @classmethod
    def submit(
        cls,
        strategy: Author,
        *,
        world: str,
        as_of: datetime | str | None = None,
        parity: Literal["sample", "full"] = "sample",
        progress: bool | None = None,
        decision_timeout_s: float = 600.0,
        run: bool = True,
        shadow: bool = False,
        on_output: OnOutput | None = None,
        on_verdict: OnVerdict | None = None,
        config: Settings | None = None,
    ) -> SubmitResult:
        """Submit, compute, and wait for the decision. Works in a script and inside a notebook's running loop, which waits meanwhile.

        `as_of` pins the data to what had closed by then; `parity="full"` compares every bar of batch and bar-by-bar execution. `run=False` only has it
        judged. `shadow` computes it beside the world, on live inputs and without orders; only an operator may ask for it. `on_output` sees every row that a
        node puts out while it runs, `on_verdict` every order with what the fence said of it. Raises QmtlError for a strategy that can't be built, sent or computed; never for a decision that is missing or stale.
        """
        submission = _Submission(
            strategy,
            world,
            _Options(as_of, parity, progress, decision_timeout_s, run, shadow, on_output, on_verdict),
            config or settings(),
        )
        cls._open.add(submission)
        try:
            return cls._kept(submission.run())
        finally:
            submission.close()

    @classmethod
    async def submit_async(cls, strategy: Author, *, world: str, **options: Any) -> SubmitResult:
        """`submit` without blocking the running loop. Cancelling it gives the lease back, as Ctrl-C does. (Any: the options of `submit`.)"""
        config = options.pop("config", None) or settings()
        submission = _Submission(strategy, world, _Options(**options), config)
        cls._open.add(submission)
        work = asyncio.create_task(asyncio.to_thread(submission.run))
        try:
            return cls._kept(await asyncio.shield(work))
        except asyncio.CancelledError:
            submission.stop.set()
            with suppress(StoppedError):
                await work
            raise
        finally:
            submission.close()

    @classmethod
    def session(cls, strategy: Author, *, world: str, **options: Any) -> "_Session":
        """`with` or `async with`: submits, hands out the result, and ends all that it started when the block ends."""
        return _Session(strategy, world, options)

    @classmethod
    def shutdown(cls, what: SubmitResult | None = None) -> None:
        """End what submissions of this process still hold: leases are given back, running strategies ended, connections closed. May be called at any time, and again."""
        for submission in list(cls._open):
            if what is None or submission.strategy_id == what.strategy_id:
                submission.stop.set()
                submission.done.wait(_SHUTDOWN_S)
        for running in list(cls._running):
            if what is None or running is what.running:
                cls._running.remove(running)
                running.close()

    @classmethod
    def _kept(cls, result: SubmitResult) -> SubmitResult:
        """Remember what runs, so that the process does not end before it."""
        if result.running is not None:
            if not cls._running:
                atexit.unregister(_wait_at_exit)
                atexit.register(_wait_at_exit)
            cls._running.append(result.running)
        return result

    # orders of a strategy that is fed by hand

    @classmethod
    def set_enable_trade_submission(cls, enabled: bool) -> None:
        cls.orders.enabled = enabled

    @classmethod
    def set_trade_execution_service(cls, service: TradeExecutionService | None) -> None:
        cls.orders.service = service

    @classmethod
    def feed_queue_data(
        cls, node: Node, queue_id: str, interval: int, timestamp: int, payload: Mapping[str, Any]
    ) -> None:
        """Hand a row of an input to a node, as its queue would. A publisher's order goes through the gate of its context."""
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


def _wait_at_exit() -> None:
    """A script that has come to its end goes on as long as its strategies run. A notebook or a prompt that is closed takes them with it."""
    interactive = hasattr(sys, "ps1") or "ipykernel" in sys.modules
    try:
        while not interactive and any(running.alive for running in Runner._running):
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    Runner.shutdown()


@dataclass(frozen=True)
class _Options:
    as_of: datetime | str | None = None
    parity: Literal["sample", "full"] = "sample"
    progress: bool | None = None
    decision_timeout_s: float = 600.0
    run: bool = True
    shadow: bool = False
    on_output: OnOutput | None = None
    on_verdict: OnVerdict | None = None


class _Session(AbstractContextManager[SubmitResult], AbstractAsyncContextManager[SubmitResult]):
    def __init__(self, strategy: Author, world: str, options: dict[str, Any]) -> None:
        self._strategy, self._world, self._options = strategy, world, options
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


class _Submission:
    """One submission from build to result."""

    def __init__(self, strategy: Author, world: str, options: _Options, config: Settings) -> None:
        self._began = time.perf_counter()
        self._build = BuiltStrategy(strategy)
        self._world, self._options, self._config = world, options, config
        self._as_of = options.as_of.isoformat() if isinstance(options.as_of, datetime) else options.as_of
        self._display = ProgressDisplay(self._build.name, options.progress)
        self._client: GatewayClient | None = None
        self.strategy_id = self._build.dag.strategy_id
        self.stop, self.done = threading.Event(), threading.Event()

    def run(self) -> SubmitResult:
        try:
            with self._display:
                client = self._connect()
                with RunnerName(self._config.cache_dir / "runners", self._world, self.strategy_id) as name:
                    return self._run(client, name)
        finally:
            self.done.set()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _connect(self) -> GatewayClient:
        url = embedded.find(self._config)
        if url is None:
            self._display.print_line(
                "No Gateway is configured: starting the embedded stack. It stays up until `qmtl down`."
            )
            url = embedded.start(self._config)
        self._client = GatewayClient(url, self._config.token)
        return self._client

    def _run(self, client: GatewayClient, name: RunnerName) -> SubmitResult:
        own = newest_own_close(self._build)
        as_of = self._as_of or (own.isoformat() if own else None)
        computed: Computed | None = None
        while True:
            ack = client.submit(self._request(name.value, as_of))
            if ack.lease is not None:
                computed = self._compute(client, ack)
                if not self._hand_in(client, ack, computed):
                    continue  # the lease had ended: the outputs are cached, and a new one is asked for
            else:
                self._display.show_step(
                    "another runner computes it, or it is past that; waiting for the decision"
                )
            name.clear()
            status = self._decision(client, ack)
            if status is not None and status.needs_runner:
                continue  # whoever computed it is gone
            result = self._result(ack, computed, status)
            return replace(result, running=self._go_on(client, ack, computed, result, name.value))

    def _go_on(
        self,
        client: GatewayClient,
        ack: SubmissionAck,
        computed: Computed | None,
        result: SubmitResult,
        runner: str,
    ) -> RunningStrategy | None:
        """The strategy, running, where the world switched it on."""
        shadow = self._options.shadow and not result.error_code
        if not self._options.run or not (
            shadow
            or (
                result.ws.activation is not None
                and result.ws.activation.active_in_effect
                and result.context.orders_allowed
            )
        ):
            return None
        if computed is None:  # another runner did it: from the cache, where it was this machine's
            computed = compute_strategy(
                self._build, ack, self._config.cache_dir, lambda _: None, self._options.parity
            )
        self._display.show_step("opening its session")
        gateways = [
            GatewayClient(client.url, client.token, away_limit_s=0.0)
        ]  # computing does not wait for a Gateway that is away
        try:
            running = RunningStrategy(
                self._build,
                client.world(self._world),
                gateways,
                ack.bindings,
                computed.outputs,
                runner=runner,
                shadow=self._options.shadow,
                cross_context_cache_hits=computed.precheck["cross_context_cache_hit"],
                on_output=self._options.on_output,
                on_verdict=self._options.on_verdict,
                recompute=lambda grant: self._computed_in(ack, grant),
            )
        except QmtlError as error:
            gateways[0].close()
            if error.code != "E_SESSION_INACTIVE":
                raise
            self._display.print_line(
                f"It does not run: {error}"
            )  # the world has thought better of it in the meantime
            return None
        return running.start()

    def _computed_in(self, ack: SubmissionAck, grant: SessionGrant) -> Mapping[str, NodeOutput]:
        """The outputs in another domain: computed there, under its own keys, up to its own time."""
        context = grant.context.model_copy(update={"dataset_fingerprint": ack.context.dataset_fingerprint})
        targets = {
            node_id: QueueTarget(topic=target.topic, compute_key=grant.history_keys[node_id], reused=True)
            for node_id, target in grant.queue_map.items()
        }
        moved = ack.model_copy(update={"context": context, "queue_map": targets})
        return compute_strategy(
            self._build, moved, self._config.cache_dir, lambda _: None, self._options.parity
        ).outputs

    def _request(self, runner: str, as_of: str | None) -> StrategySubmit:
        meta = SubmissionMeta(
            name=self._build.name, as_of=as_of, execution_domain="shadow" if self._options.shadow else None
        )
        return StrategySubmit(
            world_id=self._world,
            dag=self._build.dag,
            node_ids_crc32=self._build.crc32,
            idempotency_key=uuid.uuid4().hex,
            runner=runner,
            meta=meta,
        )

    def _compute(self, client: GatewayClient, ack: SubmissionAck) -> Computed:
        assert ack.lease is not None  # the caller has looked
        with Heartbeats(client, ack.lease) as beats:

            def report(beat: Heartbeat) -> None:
                beats.report(beat)
                self._display.show_progress(beat)
                if self.stop.is_set():
                    raise StoppedError

            try:
                return compute_strategy(
                    self._build, ack, self._config.cache_dir, report, self._options.parity
                )
            except QmtlError as error:
                final = error.code != "E_DATASET_CHANGED"
                self._give_back(
                    client,
                    ack,
                    LeaseFailure(
                        code=error.code, message=str(error)[:4000], final=final, progress=beats.newest
                    ),
                )
                raise
            except (KeyboardInterrupt, StoppedError):
                at = (
                    f" at {beats.newest.node}, bar {beats.newest.bar} of {beats.newest.bars}"
                    if beats.newest.node
                    else ""
                )
                self._display.print_line(
                    f"Stopped{at}. What was computed is kept: submit {self._build.name} again to go on from there."
                )
                self._give_back(
                    client,
                    ack,
                    LeaseFailure(
                        code="E_CANCELLED",
                        message="stopped by its author",
                        final=False,
                        progress=beats.newest,
                    ),
                )
                raise

    @staticmethod
    def _give_back(client: GatewayClient, ack: SubmissionAck, failure: LeaseFailure) -> None:
        """As far as the Gateway hears of it; where it does not, the lease times out."""
        assert ack.lease is not None  # only a held lease is given back
        try:
            client.fail(ack.lease.lease_id, failure)
        except QmtlError as error:
            if error.code not in ("E_UNAVAILABLE", "E_LEASE_LOST"):
                raise

    def _hand_in(self, client: GatewayClient, ack: SubmissionAck, computed: Computed) -> bool:
        """False where the lease had ended before."""
        assert ack.lease is not None  # the caller has computed under it
        self._display.show_step("handing in the returns")
        data = encode(computed.returns)
        digest = content_hash(data)
        client.put_artifact(digest, data)
        try:
            client.complete(
                ack.lease.lease_id,
                EvidenceRef(
                    returns_hash=digest,
                    dataset_fingerprint=computed.dataset_fingerprint,
                    precheck=computed.precheck,
                ),
            )
        except QmtlError as error:
            if error.code == "E_LEASE_LOST":
                return False
            raise
        return True

    def _decision(self, client: GatewayClient, ack: SubmissionAck) -> StrategyStatus | None:
        """The status with its outcome, or one that needs a runner; None where no decision can be had in time."""
        deadline = time.monotonic() + self._options.decision_timeout_s
        try:
            while (left := deadline - time.monotonic()) > 0:
                status = client.status(self.strategy_id, self._world, ack.run_id, min(_POLL_S, left))
                if status.outcome is not None or status.needs_runner:
                    return status
                self._display.show_step(status.step or "waiting for the decision")
                if self.stop.is_set():
                    raise StoppedError
        except QmtlError as error:
            self._display.print_line(f"No decision is to be had: {error}")
        return None

    def _result(
        self, ack: SubmissionAck, computed: Computed | None, status: StrategyStatus | None
    ) -> SubmitResult:
        outcome: SubmissionOutcome | None = status.outcome if status else None
        return SubmitResult(
            name=self._build.name,
            world=self._world,
            strategy_id=self.strategy_id,
            workflow_id=ack.workflow_id,
            run_id=ack.run_id,
            ui_url=status.ui_url if status else "",
            ws=WorldView(outcome.decision if outcome else None, outcome.activation if outcome else None),
            context=ack.context
            if ack.context.execution_domain is Domain.SHADOW
            else decided_context(ack, outcome, datetime.now(UTC)),
            metrics=outcome.metrics if outcome else {},
            precheck=computed.precheck if computed else {},
            nodes=NodeCounts(
                ack.nodes_new,
                ack.nodes_reused,
                computed.computed if computed else 0,
                computed.cached if computed else 0,
            ),
            seconds=time.perf_counter() - self._began,
            returns_hash=outcome.returns_hash if outcome else "",
            error_code=outcome.error_code if outcome else "",
            error=outcome.error if outcome else "",
        )


def decided_context(ack: SubmissionAck, outcome: SubmissionOutcome | None, now: datetime) -> ComputeContext:
    """The context after the decision. A missing, stale or unclear one closes to backtest in safe mode."""
    decision, activation = (outcome.decision, outcome.activation) if outcome else (None, None)
    mode = activation.effective_mode if activation is not None else None
    return resolve_context(
        DataScope(ack.world_id, ack.context.as_of, ack.context.partition, ack.context.dataset_fingerprint),
        mode,
        decided_at=decision.decided_at if decision else None,
        now=now,
        ttl_s=decision.ttl if decision else DEFAULT_TTL_S,
        # The services let it compute there, or would but for the fingerprint, which is missing here too.
        allow_live=ack.context.execution_domain is Domain.LIVE
        or ack.context.downgrade_reason is Downgrade.MISSING_FINGERPRINT,
    )
