"""A running strategy: computes bar by bar on its world's clock while its session holds.

1. Open a session (`SessionKeeper`): a lease on the world, the execution domain, the topics of the nodes. Its
   response also sets the clock, so this machine's clock may be wrong.
2. Continue from the outputs that the submission computed. New bars come from the world's streams as they
   close, rows of tag queries from their queues.
3. Send every row to its node's queue (`QueueWriter`) under a key derived from its inputs, so that a retry
   adds nothing.
4. Heartbeats keep the lease and report the state. The stream brings activations and new queues; the gate
   depends on both. Freezes are acknowledged once the gate has closed.
5. Rows of a publisher node become orders (`IntentBuilder`): they pass the gate to the fence, under the epoch
   of the known activation. Bars that are read late are too old to trade on.
6. When the world moves the strategy to another domain, start again there from that domain's own outputs:
   domains share nothing.
7. When a source, the stream or the Gateway fails, the gate closes and computing continues as far as it can. A
   lost session is opened again. An exception that nothing expects ends the computing, not the heartbeats:
   the gate stays closed, and they report the fault.
8. `close` ends all of it.
"""

import threading
import time
from datetime import datetime

from qmtl_sdk.compute.live import LiveEngine
from qmtl_sdk.contracts.decisions import WHOLE_WORLD
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.sessions import SessionGrant, SessionHeartbeat
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.contracts.topic_state import TopicState
from qmtl_sdk.data.bars import iso
from qmtl_sdk.runtime.activation import ActivationManager, OrderGate
from qmtl_sdk.runtime.contained import contained, reported_fault
from qmtl_sdk.runtime.feed import BarFeed
from qmtl_sdk.runtime.intents import IntentBuilder
from qmtl_sdk.runtime.orders import OrderPublisher
from qmtl_sdk.runtime.rows import BEFORE_ALL_BARS, Computation, RowProcessor, RunInputs, tag_queries_of
from qmtl_sdk.runtime.session import END_PATIENCE_S, SessionKeeper
from qmtl_sdk.runtime.stream import StreamClient

TICK_S = 0.05
"""Pause when no bar is due, in seconds."""

RETRY_S = 0.5
"""Pause before a retry while the Gateway is unavailable, in seconds."""

MAX_LAG_S = 1e9
"""The largest lag that a heartbeat reports, in seconds: JSON has no infinity."""


class RunningStrategy:
    """A strategy that runs in this process, started by `Runner`."""

    def __init__(self, inputs: RunInputs) -> None:
        self.build = inputs.build
        self.world = inputs.world
        self.strategy_id = inputs.build.dag.strategy_id
        self.bars = 0
        self._stop = threading.Event()
        self._inputs = inputs
        self._client = inputs.gateways[0]
        self._bindings = {binding.node_id: binding for binding in inputs.bindings}
        intents = IntentBuilder(inputs.build.nodes, inputs.world)
        self._computation = Computation(self.build, self._bindings, inputs.outputs)
        world_id = inputs.world.spec.world
        wanted = SessionKeeper.request(world_id, self.strategy_id, inputs.runner, inputs.shadow)
        self._session = SessionKeeper(self._client, wanted, self._stop)
        self.stream = StreamClient(
            inputs.gateways,
            Subscribe(world_id=world_id, strategy_id=self.strategy_id),
            self._handle_event,
            self._restore_topic,
        )
        self.activation = ActivationManager(self.stream, world_id, self.strategy_id)
        domain = self.grant.context.execution_domain
        self.gate = OrderGate(self.activation, inputs.shadow, self._session.wall_time, domain)
        faults, session = self.gate.faults, self._session.current_key
        self.orders = OrderPublisher(
            self._client, self.gate, world_id, self.strategy_id, session, inputs.on_verdict
        )
        self.tags = tag_queries_of(self._inputs, self.engine, self.grant, session)
        self._queues_fault = ""
        self._processor = RowProcessor(inputs, intents, self.orders, faults, session, self._stop)
        self._send_at = 0.0
        run = contained(self._run, "run", faults, "the strategy has stopped computing")
        self._thread = threading.Thread(target=run, name="qmtl-running", daemon=True)

    def __repr__(self) -> str:
        reason = self.gate.reason
        orders = f"orders off: {reason}" if reason else "orders on"
        state = orders if self.alive else "closed"
        stage = self.grant.context.execution_domain.value
        named = f"{self.build.name!r} in world {self.world.spec.world!r}"
        return f"<RunningStrategy {named}, stage {stage}, {state}>"

    @property
    def grant(self) -> SessionGrant:
        """The current session."""
        return self._session.grant

    @property
    def engine(self) -> LiveEngine:
        """The engine of the current domain."""
        return self._computation.engine

    @property
    def feed(self) -> BarFeed:
        """The bar feed of the current domain."""
        return self._computation.feed

    @property
    def alive(self) -> bool:
        """Whether it was not closed yet."""
        return not self._stop.is_set()

    def start(self) -> "RunningStrategy":
        """Start its threads."""
        self.stream.start()
        self.orders.start()
        self._thread.start()
        self._session.start(self.report, self._inputs.hits.delivered, self.gate.faults)
        return self

    def close(self, reason: str = "stopped by its author") -> None:
        """Stop its threads and end its session. Safe to call repeatedly."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._session.join()
        self.orders.close()
        self.stream.close()
        self._session.end(reason)
        for gateway in self._inputs.gateways:
            gateway.close()

    def wait(self, limit_s: float | None = None) -> bool:
        """Wait until it is closed; return whether it was closed within the limit."""
        return self._stop.wait(limit_s)

    def now(self) -> datetime:
        """Return the world's time, by the Gateway's clock."""
        return self.world.now(self._session.wall_time())

    def report(self) -> SessionHeartbeat:
        """Return the state that a heartbeat reports."""
        reason = self.gate.reason
        lagging = self.stream.behind or self.stream.fault
        refused_targets, target_refusal = self.orders.targets.refused()
        return SessionHeartbeat(
            positions=self.stream.positions,
            lag_s=round(max(0.0, min(self.activation.silence_s, MAX_LAG_S)), 3) if lagging else 0.0,
            gate="closed" if reason else "open",
            reason=printable(reason, 300),
            bar=iso(self.engine.now) if self.engine.now > BEFORE_ALL_BARS else "",
            bars=self.bars,
            resident_bytes=self.engine.resident_bytes,
            dropped_bars=self.feed.late + self.engine.late,
            fault=printable(reported_fault(self.gate.faults) or self._queues_fault or self.stream.fault, 500),
            refused_targets=refused_targets,
            target_refusal=printable(target_refusal, 500),
            cross_context_hits=self._inputs.hits.oldest(),
        )

    def _handle_event(self, kind: str, event: CloudEvent) -> None:
        if kind == "queues":
            self.tags.handle(event)
        elif kind == "activation" and event.subject == WHOLE_WORLD:
            self._acknowledge(event)

    def _restore_topic(self, kind: str, state: TopicState) -> None:
        for event in state.events.values():
            self._handle_event(kind, event)

    def _acknowledge(self, event: CloudEvent) -> None:
        """Acknowledge a freeze or unfreeze. The stream has already applied it, so the gate has changed."""
        if event.data and event.data.get("requires_ack"):
            self.orders.acknowledge(self._session.key, int(event.data["sequence"]))

    def _run(self) -> None:
        self._add_history()
        while not self._stop.is_set():
            self._switch_domain()
            if not self._step():
                self._stop.wait(TICK_S)

    def _add_history(self) -> None:
        self._processor.queues.add_history(self.build.nodes, self._computation.outputs, self.grant.queue_map)
        self._processor.restore(self._computation.outputs)
        self._computation.outputs = {}

    def _switch_domain(self) -> None:
        """Start again in the domain that the world moved the strategy to, from that domain's own outputs."""
        domain = self.activation.domain
        recompute = self._inputs.recompute
        stays = self._inputs.shadow or domain is self.gate.domain
        if stays or recompute is None or domain not in (Domain.DRYRUN, Domain.LIVE):
            return
        self.gate.faults["domain"] = f"it moves to {domain.value}"
        try:
            old = self._session.key
            grant = self._session.open()
            self._computation = Computation(self.build, self._bindings, recompute(grant))
            self._session.grant = grant
            self.gate.domain = grant.context.execution_domain
            self.tags = tag_queries_of(self._inputs, self.engine, self.grant, self._session.current_key)
            self._processor.queues.clear()
            self._add_history()
            self._client.end_session(old, f"moved to {domain.value}", patience_s=END_PATIENCE_S)
        except QmtlError as error:
            self._stop.wait(RETRY_S)
            self.gate.faults["domain"] = f"it can't move to {domain.value}: {error.message}"
            return
        del self.gate.faults["domain"]

    def _step(self) -> bool:
        """Process the bars and queue rows that are due; return whether there were any."""
        try:
            moved = self._process_bars()
            self.gate.faults.pop("data", None)
            silence = self._computation.silence(self.now())
            if silence and not self._inputs.shadow:
                self.gate.faults["data"] = silence
        except QmtlError as error:
            moved = False
            self.gate.faults["data"] = f"the data can't be read: {error.message}"
        try:
            for close, tagged in self.tags.poll():
                outputs = self.engine.advance(close, {}, tagged)
                self._processor.add_outputs(outputs, self.grant.queue_map, self.now())
                moved = True
            if time.monotonic() >= self._send_at:
                self._processor.queues.send()
                self._queues_fault = ""
        except QmtlError as error:  # unsent rows are retried; the stream tells the gate about the Gateway
            self._send_at = time.monotonic() + RETRY_S
            self._queues_fault = f"queues can't be reached: {error.message}"
        return moved

    def _process_bars(self) -> bool:
        moved = False
        for close, bars in self.feed.due(self.now()):
            if self._stop.is_set():
                return False
            self._processor.add_bars(bars, self.grant.queue_map)
            outputs = self.engine.advance(close, bars)
            self._processor.add_outputs(outputs, self.grant.queue_map, self.now())
            self.bars += len(bars)
            moved = True
        return moved
