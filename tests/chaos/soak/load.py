"""Who uses the world all year: authors, whoever wants judgments, traders and an operator."""

import random
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.decisions import WHOLE_WORLD
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.orders import Order
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionOpen
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.contracts.submission import EvidenceRef, StrategySubmit
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.stream import StreamClient
from tests.chaos.soak.figures import Figures
from tests.chaos.soak.year import Year
from tests.support.desk import new_order_id

WORLD = "equities"

ORDERS_A_REQUEST = 20

# Days after which a runner is started again, with a new session.
_SESSION_DAYS = 10.0

_HEARTBEAT_S = 5.0


@dataclass(frozen=True)
class Load:
    """A year, its figures, and a way to its Gateway."""

    year: Year
    figures: Figures
    client: GatewayClient


@dataclass(frozen=True)
class Submitted:
    """A strategy that is submitted again and again, with the returns that its author uploads."""

    body: StrategySubmit
    evidence: EvidenceRef


class Authors:
    """Submit the same strategies again and again, and wait for each decision."""

    def __init__(self, load: Load, strategies: Sequence[Submitted]) -> None:
        self._load = load
        self._strategies = strategies

    def submit(self, number: int) -> int:
        found = self._strategies[number % len(self._strategies)]
        body = found.body.model_copy(update={"idempotency_key": uuid.uuid4().hex})
        client = self._load.client
        with self._load.figures.timed("ack"):
            ack = client.submit(body)
        assert ack.lease is not None, "nobody else computes this strategy"
        client.complete(ack.lease.lease_id, found.evidence)
        while (status := client.status(ack.strategy_id, WORLD, ack.run_id, wait_s=20)).outcome is None:
            continue
        if status.state != "decided":
            self._load.year.errors.append(f"submission {number} ended as {status.state}")
        return 1


def judge(load: Load, _number: int) -> int:
    """Have the world judged, as a renewal or a person does."""
    with load.figures.timed("judgment"):
        load.client.decide(WORLD, uuid.uuid4().hex)
    return 1


@dataclass
class Trader:
    """A runner that orders what it is told to, under the epoch of the last answer."""

    load: Load
    strategy_id: str
    epoch: int
    accepted: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    session: SessionKey | None = None
    _opened: float = 0.0
    _alive: float = 0.0

    def order(self, _done: int) -> int:
        """Send some orders; return how many were accepted."""
        session = self._held()
        orders = [self._order(session) for _ in range(ORDERS_A_REQUEST)]
        began = time.perf_counter()
        verdicts = self.load.client.publish_orders(orders, session)
        took = time.perf_counter() - began
        accepted = {verdict.order_id for verdict in verdicts if verdict.accepted}
        refusals = Counter(verdict.reason for verdict in verdicts if verdict.reason)
        self.accepted |= accepted
        self.refused.update(reason.value for reason in refusals.elements())
        if not refusals:
            self.load.figures.note("order", 1000 * took)
        elif refusals.keys() != {Refusal.STALE_EPOCH}:
            self.load.year.ended.wait(0.1)  # an apply freezes the world
        if refusals[Refusal.NO_SESSION]:
            self.session = None
        self.epoch = verdicts[-1].epoch
        return len(accepted)

    def acknowledge(self, sequence: int) -> None:
        """Say that this runner has acted on a freeze."""
        session = self.session
        if session is not None:
            self.load.client.ack_session(session, sequence)

    def end(self) -> None:
        """End the session."""
        session, self.session = self.session, None
        if session is not None:
            self.load.client.end_session(session, "stopped")

    def _held(self) -> SessionKey:
        """A session that lives."""
        client = self.load.client
        if self.load.year.day > self._opened + _SESSION_DAYS:
            self.end()
        if self.session is None:
            wanted = SessionOpen(world_id=WORLD, strategy_id=self.strategy_id, runner="soak")
            self.session = SessionKey.of(client.open_session(wanted))
            self._opened, self._alive = self.load.year.day, time.monotonic()
        elif time.monotonic() > self._alive + _HEARTBEAT_S:
            client.session_heartbeat(self.session, SessionHeartbeat())
            self._alive = time.monotonic()
        return self.session

    def _order(self, session: SessionKey) -> Order:
        return Order(
            order_id=new_order_id(WORLD, self.strategy_id),
            world_id=WORLD,
            strategy_id=self.strategy_id,
            session_id=session.session_id,
            execution_domain="dryrun",
            epoch=self.epoch,
            symbol="AAPL",
            side="buy",
            quantity="1",
            reference_price="100",
        )


def acknowledging(load: Load, traders: Sequence[Trader]) -> StreamClient:
    """A stream by which traders acknowledge every freeze, as runners do."""

    def hear(kind: str, event: CloudEvent) -> None:
        data = event.data
        if kind == "activation" and event.subject == WHOLE_WORLD and data and data.get("requires_ack"):
            for trader in traders:
                try:
                    trader.acknowledge(int(data["sequence"]))
                except QmtlError as error:  # it has just ended its session
                    if error.code not in ("E_SESSION_LOST", "E_SESSION_UNKNOWN"):
                        load.year.errors.append(f"an acknowledgement was refused: {error}")

    return StreamClient([load.client], Subscribe(world_id=WORLD), on_event=hear)


class Operator:
    """Asks for applies, each with other weights, which another person approves."""

    def __init__(self, load: Load, approver: GatewayClient, traders: Sequence[str], seed: int) -> None:
        self._load = load
        self._approver = approver
        self._traders = traders
        self._rng = random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    def apply(self, _number: int) -> int:
        """An apply from its request to its end; return whether it was carried out.

        One whose evidence changes before its freeze is refused, and requested again.
        """
        client, run_id = self._load.client, f"apply-{uuid.uuid4().hex}"
        weights = {name: round(self._rng.uniform(0.01, 1 / len(self._traders)), 4) for name in self._traders}
        wanted = ApplyRequest(run_id=run_id, to="dryrun", strategies=tuple(self._traders), weights=weights)
        try:
            status = client.apply(WORLD, wanted)
            if status.plan.approval.required:
                self._approver.approve(WORLD, run_id, ApprovalBody())
        except QmtlError as error:
            if error.code not in ("E_ETAG", "E_APPLY_ENDED"):
                raise
            self.outcomes[error.code] += 1
        while (status := client.apply_status(WORLD, run_id, wait_s=20)).outcome is None:
            continue
        self.outcomes[status.outcome] += 1
        return int(status.outcome == "completed")
