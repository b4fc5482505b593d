"""Run one submission: from a strategy class to the world's decision.

1. Build the DAG and check it.
2. Find the Gateway; if none is configured and none runs, start the embedded stack.
3. Post the submission. The acknowledgement carries the context, the data bindings and, unless another runner
   computes it already, a compute lease.
4. Compute under the lease, upload the returns by content hash, complete the lease.
5. Wait for the decision. If it is unavailable or stale, the result says so: computed only, safe mode, orders
   off. So does the result of a submission that no Gateway answers (`unanswered.py`).
6. If the world activated the strategy in dryrun or live, or shadow was requested, start it on its own
   threads.

A submission can be interrupted and repeated: outputs are cached, and the lease is taken over.
"""

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import SessionGrant
from qmtl_sdk.contracts.submission import (
    QueueTarget,
    StrategyStatus,
    StrategySubmit,
    SubmissionAck,
    SubmissionMeta,
    one_world,
)
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.contracts.worlds import WorldId
from qmtl_sdk.nodes.strategy import BuiltStrategy, Strategy
from qmtl_sdk.runtime import embedded
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.computation import Computed, Report, compute_strategy, newest_own_close
from qmtl_sdk.runtime.config import Settings
from qmtl_sdk.runtime.identity import RunnerName
from qmtl_sdk.runtime.leased import StoppedError, compute_under_lease, submit_returns
from qmtl_sdk.runtime.orders import OnVerdict
from qmtl_sdk.runtime.progress import ProgressDisplay
from qmtl_sdk.runtime.result import SubmitResult, result_of
from qmtl_sdk.runtime.rows import CacheHitReports, OnOutput, RunInputs
from qmtl_sdk.runtime.running import RunningStrategy
from qmtl_sdk.runtime.unanswered import acknowledge_here, is_unreachable, remember, unbound

Author = Strategy | type[Strategy]

# How a world can be called.
_WORLD: TypeAdapter[str] = TypeAdapter(WorldId)

POLL_S = 5.0
"""How long one request for the status waits for a change, in seconds."""

TEST_DECISION_S = 30.0
"""The longest wait for a decision with `test.test_mode`, in seconds."""


@dataclass(frozen=True)
class SubmitOptions:
    """The options of `Runner.submit`, described there."""

    as_of: datetime | str | None = None
    parity: Literal["sample", "full"] = "sample"
    progress: bool | None = None
    decision_timeout_s: float = 600.0
    run: bool = True
    shadow: bool = False
    on_output: OnOutput | None = None
    on_verdict: OnVerdict | None = None


def named_world(world: str) -> str:
    """Return the world that an author names.

    Raises QmtlError: E_WORLDS_SEVERAL for several, E_WORLD_UNKNOWN for what no world can be called.
    """
    found = one_world(world)
    try:
        return _WORLD.validate_python(found)
    except ValidationError as error:
        raise QmtlError(
            "E_WORLD_UNKNOWN",
            f"no world can be called {printable(str(found), 64)!r}",
            "world= takes the id of a world: lower-case letters, digits, _ and -",
        ) from error


class Submission:
    """One submission from build to result."""

    def __init__(self, strategy: Author, world: str, options: SubmitOptions, config: Settings) -> None:
        self._started = time.perf_counter()
        self._world = named_world(world)
        self._build = BuiltStrategy(strategy, self._world)
        self._options = options
        self._config = config
        self._as_of = options.as_of.isoformat() if isinstance(options.as_of, datetime) else options.as_of
        self._display = ProgressDisplay(self._build.name, options.progress)
        self._client: GatewayClient | None = None
        self.strategy_id = self._build.dag.strategy_id
        self.stop = threading.Event()
        self.done = threading.Event()

    def run(self) -> SubmitResult:
        """Run the submission to its result."""
        try:
            with self._display:
                client = self._connect()
                with RunnerName(self._config.cache_dir / "runners", self._world, self.strategy_id) as name:
                    return self._run(client, name)
        finally:
            self.done.set()

    def close(self) -> None:
        """Close the connection to the Gateway."""
        if self._client is not None:
            self._client.close()

    def _connect(self) -> GatewayClient:
        url = embedded.find(self._config)
        if url is None:
            self._display.print_line(
                "No Gateway is configured: starting the embedded stack. It stays up until `qmtl down`."
            )
            url = embedded.start(self._config)
        self._client = GatewayClient.configured(url, self._config)
        return self._client

    def _run(self, client: GatewayClient, name: RunnerName) -> SubmitResult:
        own = newest_own_close(self._build)
        as_of = self._as_of or (own.isoformat() if own else None)
        computed: Computed | None = None
        while True:
            try:
                ack = client.submit(self._request(name.value, as_of))
            except QmtlError as error:
                return self._compute_only(error, as_of)
            remember(self._config.cache_dir, ack)
            if ack.lease is not None:
                computed = compute_under_lease(
                    client, ack, self._build.name, self._display, self.stop, self._compute_with(ack)
                )
                self._display.show_step("submitting the returns")
                try:
                    if not submit_returns(client, ack, computed):
                        continue  # the lease had ended: request a new one; the outputs are cached
                except QmtlError as error:
                    return self._compute_only(error, as_of, computed)
            else:
                self._display.show_step(
                    "another runner computes it, or it is already computed; waiting for the decision"
                )
            name.clear()
            status = self._wait_for_decision(client, ack)
            if status is not None and status.needs_runner:
                continue  # the runner that computed it has stopped
            result = self._result(ack, computed, status)
            return replace(result, running=self._start_running(client, ack, computed, result, name.value))

    def _compute_only(
        self, error: QmtlError, as_of: str | None, computed: Computed | None = None
    ) -> SubmitResult:
        """Return what is computed here, in safe mode, or raise the error that a Gateway has answered with."""
        if not is_unreachable(error):
            raise error
        self._display.print_line(f"No Gateway answers, so nothing is decided and orders are off: {error}")
        ack = acknowledge_here(self._build, self._world, as_of, self._config.cache_dir)
        unknown = unbound(self._build, ack)
        if computed is None and not unknown:
            computed = self._compute_with(ack)(self._display.show_progress)
        why = f"; nothing is computed: only the Gateway knows the data of {unknown[0]}" if unknown else ""
        result = self._result(ack, computed, None)
        return replace(result, error_code=error.code, error=error.message + (why if computed is None else ""))

    def _start_running(
        self,
        client: GatewayClient,
        ack: SubmissionAck,
        computed: Computed | None,
        result: SubmitResult,
        runner: str,
    ) -> RunningStrategy | None:
        """Start the strategy if the world activated it, or in shadow; return None otherwise."""
        shadow = self._options.shadow and not result.error_code
        if not self._options.run or not (
            shadow
            or (
                result.ws.activation is not None
                and result.ws.activation.active
                and result.context.orders_allowed
            )
        ):
            return None
        if computed is None:  # another runner computed it; the cache helps if that was on this machine
            computed = compute_strategy(
                self._build, ack, self._config.cache_dir, lambda _: None, self._options.parity
            )
        self._display.show_step("opening its session")
        gateway = client.for_running()
        hits = CacheHitReports(computed.cross_context_hits)
        try:
            running = RunningStrategy(
                RunInputs(
                    build=self._build,
                    world=client.world(self._world),
                    gateways=[gateway],
                    bindings=ack.bindings,
                    outputs=computed.outputs,
                    runner=runner,
                    shadow=self._options.shadow,
                    hits=hits,
                    on_output=self._options.on_output,
                    on_verdict=self._options.on_verdict,
                    recompute=lambda grant: self._recompute(ack, grant, hits),
                )
            )
        except QmtlError as error:
            gateway.close()
            if error.code != "E_SESSION_INACTIVE":
                raise
            self._display.print_line(f"The strategy does not run: {error}")  # deactivated in the meantime
            return None
        return running.start()

    def _recompute(
        self, ack: SubmissionAck, grant: SessionGrant, hits: CacheHitReports
    ) -> Mapping[str, NodeOutput]:
        """Compute the outputs in another domain, under its own compute keys and up to its own time."""
        context = grant.context.model_copy(update={"dataset_fingerprint": ack.context.dataset_fingerprint})
        targets = {
            node_id: QueueTarget(topic=target.topic, compute_key=grant.history_keys[node_id], reused=True)
            for node_id, target in grant.queue_map.items()
        }
        moved = ack.model_copy(update={"context": context, "queue_map": targets})
        computed = compute_strategy(
            self._build, moved, self._config.cache_dir, lambda _: None, self._options.parity
        )
        hits.add(computed.cross_context_hits)
        return computed.outputs

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

    def _compute_with(self, ack: SubmissionAck) -> Callable[[Report], Computed]:
        """Return the computation, which takes a function that reports its progress."""
        return lambda report: compute_strategy(
            self._build, ack, self._config.cache_dir, report, self._options.parity
        )

    def _wait_for_decision(self, client: GatewayClient, ack: SubmissionAck) -> StrategyStatus | None:
        """Wait for a status that has an outcome or needs a runner; return None on a timeout or an error."""
        limit = self._options.decision_timeout_s
        if self._config.test.test_mode:
            limit = min(limit, TEST_DECISION_S)
        deadline = time.monotonic() + limit
        try:
            while (left := deadline - time.monotonic()) > 0:
                status = client.status(self.strategy_id, self._world, ack.run_id, min(POLL_S, left))
                if status.outcome is not None or status.needs_runner:
                    return status
                self._display.show_step(status.step or "waiting for the decision")
                if self.stop.is_set():
                    raise StoppedError
        except QmtlError as error:
            self._display.print_line(f"No decision is available: {error}")
        return None

    def _result(
        self, ack: SubmissionAck, computed: Computed | None, status: StrategyStatus | None
    ) -> SubmitResult:
        return result_of(self._build.name, ack, computed, status, time.perf_counter() - self._started)
