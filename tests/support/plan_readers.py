"""What the processes do with a store: loops, activities, requests and pages, each over the shipped code."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from temporalio.client import Client

from activities.brokers.router import brokers
from activities.decisions.activities import DecisionActivities
from activities.events.bus import SqliteBus
from activities.events.relay import Relay
from activities.fence.cache_hits import CacheHits
from activities.fence.open_orders import SqlOpenOrders
from activities.messages.apply import DirectApproval
from activities.messages.evaluation import JudgeCommand, RenewalInput
from activities.messages.promotion import PublishPromotion
from activities.messages.submission import AdmitRun, EvidenceBody
from activities.promotions.sql import SqlPromotions
from activities.queues.upkeep import QueueRetention
from activities.sessions.sql import SqlSessionStore
from activities.sessions.time_open import time_open
from activities.settings import Settings
from activities.storage.heartbeats import HeartbeatWriter, processes
from activities.stores import Stores
from api.gateway import create_app, gateway_state
from api.stream import Hub
from qmtl_sdk import Node, Strategy, StreamInput, TagQueryNode
from qmtl_sdk.contracts.access import EVERY_WORLD, Role, TokenRequest
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import CancelRequest, OrderReport, WithheldOrder
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionOpen
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck, SubmissionOutcome
from qmtl_sdk.contracts.worlds import WorldUpdate
from qmtl_sdk.nodes.strategy import BuiltStrategy
from tests.support.admissions import run_of
from tests.support.desk import Desk, policy, router
from tests.support.query_plans import Recorder

WAITS_S = 0.5
"""Seconds after which a page is given up: it has read the database, and waits for Temporal, which is away."""
LATER = datetime.now(UTC) + timedelta(days=40)


class Tagged(Strategy):
    """A strategy with a tagged node, and one with a tag query: it adds a row to each table of the graph."""

    def __init__(self, symbol: str) -> None:
        super().__init__()
        self.symbol = symbol

    def setup(self) -> None:
        price = StreamInput(tags=[self.symbol], interval="1h", period=1)
        node = Node(price, lambda view: 1.0, name=f"rsi {self.symbol}", tags=["price", self.symbol])
        self.add_nodes([node, TagQueryNode(query_tags=["price"], interval="1h", compute_fn=lambda view: 1.0)])


class House:
    """An installation with one world `w` in which a little of everything has happened."""

    def __init__(self, home: Path, dsn: str) -> None:
        self.config = Settings.model_validate({"home": home, "gateway": {"database_dsn": dsn}})
        self.stores = Stores.open(self.config)
        self.database = self.stores.database
        self.desk = Desk(self.database, strategies=2, found=policy(approvals={"required": 1, "policy": 1}))
        self.bus = SqliteBus(home / "bus.db")
        self.promotions = SqlPromotions(self.database, self.stores.apply_requests)
        self.relay = Relay(self.database, self.bus, 1000)
        self.open_orders = SqlOpenOrders(self.database, 300.0)
        self.app = create_app(self.config)

    def close(self) -> None:
        self.bus.close()
        self.stores.close()

    @property
    def strategy(self) -> str:
        return self.desk.strategies[0]

    # What happened before, so that each table has a row to copy.

    def live(self) -> None:
        """Write a row into each table that grows."""
        run = self.desk.apply("dryrun")
        self.stores.approvals.record_direct(self._signal(run))
        with contextlib.suppress(QmtlError):
            self.stores.rule_changes.add_policy("w", policy(approvals={"required": 0}), "olga")
        self.trade()
        self.submit("A")
        self.stores.apply_acks.ack("w", 1, "gateway:1", "gateway")
        outcome = SubmissionOutcome(world_id="w", strategy_id=self.strategy, run_id="first", status="failed")
        self.stores.runs.save_outcome(outcome)
        self.stores.principals.add_if_new("olga", "system")
        self._token()
        self.session = self.desk.session()
        self.judge()

    def trade(self) -> None:
        """Send two orders, and let the router handle one."""
        session = self.desk.session()
        orders = [self.desk.order(session, self.desk.epoch) for _ in range(2)]
        verdicts = self.stores.orders.publish(orders, self.desk.caller)
        assert all(verdict.accepted for verdict in verdicts)
        held = self.desk.order(session, self.desk.epoch)
        self.stores.withheld.record([WithheldOrder(order=held, reason="closed")], self.desk.caller)
        due = self.open_orders.due(Domain.DRYRUN, 500)["w"]
        sent = self.open_orders.mark_sent("w", due, 60.0)
        first = sent[0]
        self.open_orders.record("w", [OrderReport(order_id=first.order_id, state="cancelled")], {})
        self.open_orders.record("w", [OrderReport(order_id=sent[1].order_id, state="sent")], {sent[1]: 0.0})
        self.open_orders.delay("w", {sent[1]: 0.0})

    def submit(self, symbol: str) -> str:
        """Admit a submission, and reject it. Returns its strategy's id."""
        built = BuiltStrategy(Tagged(symbol))
        key, run = uuid.uuid4().hex, uuid.uuid4().hex
        submit = StrategySubmit(
            world_id="w", dag=built.dag, node_ids_crc32=built.crc32, idempotency_key=key, runner="r"
        )
        self.stores.log.append(submit, "ana")
        self.stores.log.append(submit, "ana")
        self.stores.log.body(key)
        admissions = self.stores.for_submissions.admissions
        command = AdmitRun.model_validate(
            {
                "store_id": self.database.store_id,
                "log_key": key,
                "idempotency_key": key,
                "run_id": run,
                "world_id": "w",
                "workflow_id": "x",
            }
        )
        ack = admissions.admit(command, run_of(run, submit.dag.strategy_id), submit)
        assert isinstance(ack, SubmissionAck)
        self.stores.log.refuse(key, "E_X")
        with contextlib.suppress(QmtlError):
            self.stores.log.require_lease_holder(run, "lease", "ana")
        evidence = EvidenceBody(run_id=run, world_id="w", strategy_id=ack.strategy_id, error_code="E_X")
        nodes = tuple(node.node_id for node in built.dag.nodes)
        from activities.messages.submission import NodeValidation

        checked = [
            NodeValidation(node_id=node, execution_domain="backtest", eval_key=f"{run}{node}")
            for node in nodes
        ]
        for _ in range(2):
            self.stores.runs.save_evidence(evidence, checked)
            self.stores.runs.save_outcome(
                SubmissionOutcome(world_id="w", strategy_id=ack.strategy_id, run_id=run, status="failed")
            )
        self.stores.runs.evidence(run)
        self.stores.graph.plan("w", "backtest", built.dag)
        return ack.strategy_id

    def judge(self) -> None:
        """Judge the world, for a new request."""
        command = JudgeCommand(
            store_id=self.database.store_id, world_id="w", run_id="judge", request_ids=(uuid.uuid4().hex,)
        )
        DecisionActivities(self.stores.for_decisions).judge(command)

    def _token(self, subject: str = "olga", grants: dict[str, Role] | None = None) -> str:
        request = TokenRequest(subject=subject, grants=grants or {EVERY_WORLD: Role.OWNER})
        return self._tokens().issue(request, "olga").token

    def _tokens(self) -> Any:
        from api.auth.keys import KeyRing
        from api.auth.tokens import Tokens

        return Tokens(KeyRing(self.config.keys_path), self.stores.tokens, self.database.store_id)

    def _signal(self, run: str) -> DirectApproval:
        return DirectApproval(
            store_id=self.database.store_id,
            approval_id=uuid.uuid4().hex,
            world_id="w",
            run_id=run,
            actor="x",
            verdict="approve",
            reason="",
        )

    # What is recorded.

    def loops(self) -> dict[str, Callable[[], object]]:
        """The turns of the loops of all processes, by name."""
        stores = self.stores
        upkeep = QueueRetention(self.database, stores.queues, stores.artifacts)
        routing = router(self.database, brokers(self.config.orders)[Domain.DRYRUN])
        renewal = DecisionActivities(stores.for_decisions)
        return {
            "relay": self.relay.step,
            "router": lambda: (self.trade(), routing.step(), self.open_orders.next_due()),
            "sessions": self._expire,
            "revoked tokens": stores.tokens.revoked,
            "lease": lambda: (
                stores.gateway_leases.heartbeat("gateway:1", 10.0),
                stores.gateway_leases.heartbeat("gateway:1", 10.0),
                stores.gateway_leases.end("gateway:1"),
            ),
            "acknowledgements": lambda: stores.apply_acks.ack("w", 7, "gateway:1", "gateway"),
            "submissions": lambda: stores.log.waiting(10_000),
            "applies": lambda: (
                stores.apply_requests.unfinished(),
                stores.apply_requests.unfinished_aborts(),
                stores.approvals.unread(),
            ),
            "heartbeat": self._heartbeat,
            "renewal": lambda: renewal.worlds_to_renew(RenewalInput(store_id=self.database.store_id)),
            "upkeep": lambda: self._upkeep(upkeep),
        }

    def _expire(self) -> None:
        over = SqlSessionStore(self.database, -1.0)
        wanted = SessionOpen(world_id="w", strategy_id=self.strategy, runner="r", host="h")
        over.open(wanted, "s", "dryrun", "ana")
        assert over.expire() == 1
        self.stores.sessions.next_expiry_s()

    def _end_session(self) -> None:
        found = self.desk.session()
        self.stores.sessions.heartbeat(found, SessionHeartbeat())
        self.stores.sessions.end(found, "stopped", "ana")

    def _heartbeat(self) -> None:
        with HeartbeatWriter(self.database, "relay") as heartbeat:
            heartbeat.elected()
            heartbeat.worked()
        processes(self.database)

    def _upkeep(self, upkeep: QueueRetention) -> None:
        for topic in upkeep.due(LATER)[:2]:
            upkeep.apply(topic, LATER)

    def acts(self) -> dict[str, Callable[[], object]]:
        """What activities and requests write, by name."""
        stores = self.stores
        return {
            "submission": lambda: self.submit(uuid.uuid4().hex[:6]),
            "judgment": lambda: (self.judge(), stores.decisions.history("w", LATER - timedelta(days=41))),
            "promotion": self._promote,
            "apply": self._apply,
            "rule change": self._change_rules,
            "halts": self._halt,
            "dead letters": self._dead_letters,
            "access": self._access,
            "session": self._end_session,
            "cache hits": lambda: stores.cache_hits.count(CacheHits("r", "w", self.strategy, ["n"]), "ana"),
        }

    def _promote(self) -> None:
        for to in ("dryrun", "live"):
            self.promotions.progress("w", self.strategy, to)
        now = datetime.now(UTC)
        with self.database.read() as session:  # of a strategy with many sessions
            time_open(session, "w", "strategy:s5", "dryrun", now - timedelta(days=7), now)
        message = PublishPromotion(
            store_id=self.database.store_id,
            world_id="w",
            strategy_id=self.strategy,
            run_id=uuid.uuid4().hex,
            state="waiting",
            actor="olga",
            reason="",
        )
        self.promotions.publish(message)

    def _apply(self) -> None:
        requests, steps, approvals = (
            self.stores.apply_requests,
            self.stores.apply_steps,
            self.stores.approvals,
        )
        with contextlib.suppress(QmtlError):  # the plan rests on evidence that was judged
            self.judge()
        run = self.desk.request("dryrun", strategies=[self.strategy])
        approvals.record_direct(self._signal(run))
        approvals.record("w", run, "ben", "approve", ApprovalBody())
        approvals.unread()
        approvals.read("w", run)
        steps.await_approval("w", run, LATER)
        change = steps.freeze("w", run)
        self.stores.apply_acks.ack("w", change.sequence, "gateway:1", "gateway")
        self.stores.apply_acks.missing("w", change, "freeze")
        self.stores.order_log.open_orders("w")
        steps.drain("w", run)
        steps.switch("w", run)
        steps.unfreeze("w", run)
        steps.conclude("w", run, "completed", "")
        requests.find("w", run)

    def _change_rules(self) -> None:
        changes = self.stores.rule_changes
        try:
            changes.add_policy("w", policy(approvals={"required": 0, "policy": 1}), "olga")
        except QmtlError as error:
            changes.decide("w", error.details["change_id"], "ben", "approve", "")
        changes.update_world("w", WorldUpdate(description="x"), "olga")

    def _halt(self) -> None:
        from activities.fence.halt_all import halt_all

        stores = self.stores
        stores.order_log.cancel("w", CancelRequest(all=True), "olga")
        stores.strategy_halts.halt("w", self.strategy, "olga", "x")
        stores.strategy_halts.resume("w", self.strategy, "olga", "x")
        halt_all(self.database, stores.fence.world_ids(), "olga", "x")
        stores.fence.halt("w", "olga", "x")
        stores.apply_steps.resume("w", "olga", "x")

    def _dead_letters(self) -> None:
        """Retry and drop dead letters whose subject has many later events."""
        letters = self.stores.dead_letters
        first, second = (letter.number for letter in letters.all(0, 2))
        with contextlib.suppress(QmtlError):
            letters.retry(first, "olga")
        letters.drop(second, "olga")
        letters.count(1000)

    def _access(self) -> None:
        principals, tokens = self.stores.principals, self.stores.tokens
        principals.add_if_new("p1", "olga")
        self._token("p1")
        tokens.states(["t1", "t2"])
        tokens.revoke("t3", "olga")
        principals.disable("p1", "olga")

    # Pages.

    async def pages(
        self, recorder: Recorder, urls: Iterable[str], grants: dict[str, Role] | None = None
    ) -> dict[str, Any]:
        """Read pages over HTTP without a server, as an owner unless other grants are given.

        Returns status and answer by what was recorded. (Any: their JSON.)
        """
        client = await Client.connect("127.0.0.1:1", lazy=True)
        state = gateway_state(self.config, self.stores, Hub(self.bus, lambda _: None), client)
        self.app.state.gateway, self.app.state.tokens = state, state.tokens
        caller = "" if grants is None else f"as {', '.join(grants)} "
        headers = {"authorization": f"Bearer {self._token(grants=grants)}"}
        transport = httpx.ASGITransport(self.app)
        answers: dict[str, Any] = {}
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as http:
            for url in urls:
                with recorder.reading(f"{caller}GET {url}"):
                    try:
                        async with asyncio.timeout(WAITS_S):
                            answer = await http.get(url)
                    except TimeoutError:  # it waits for Temporal
                        continue
                body = answer.json() if "json" in answer.headers.get("content-type", "") else None
                answers[f"{caller}GET {url}"] = (answer.status_code, body)
        return answers
