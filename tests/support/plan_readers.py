"""What the processes do with a store: loops, activities, requests and pages, each over the shipped code."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import httpx
from temporalio.client import Client

from activities.brokers.router import brokers
from activities.decisions.activities import DecisionActivities
from activities.fence.cache_hits import CacheHits
from activities.messages.evaluation import RenewalInput
from activities.messages.promotion import PublishPromotion
from activities.messages.submission import NodeValidation
from activities.queues.upkeep import QueueRetention
from activities.sessions.sql import SqlSessionStore
from activities.sessions.time_open import time_open
from activities.storage.heartbeats import HeartbeatWriter, processes
from api.gateway import gateway_state
from api.stream import Hub
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.orders import CancelRequest
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionOpen
from qmtl_sdk.contracts.worlds import WorldUpdate
from tests.support.desk import policy, router
from tests.support.plan_house import LATER, House
from tests.support.plan_trading import flatten, read_equity, rebalance
from tests.support.query_plans import Recorder

WAITS_S = 0.5
"""Seconds after which a page is given up: it has read the database, and waits for Temporal, which is away."""


class Readers(House):
    """A house whose loops, activities and requests can be run by name."""

    def loops(self) -> dict[str, Callable[[], object]]:
        """The turns of the loops of all processes, by name."""
        stores = self.stores
        upkeep = QueueRetention(self.database, stores.queues, stores.artifacts)
        routing = router(self.database, brokers(self.config.orders)[Domain.DRYRUN])
        renewal = DecisionActivities(stores.for_decisions)
        return {
            "relay": self.relay.step,
            "router": lambda: (self.trade(), routing.step(), self.open_orders.next_due()),
            "session expiry": self._expire,
            "flattens": partial(flatten, stores, self.strategy),
            "rebalancings": partial(rebalance, stores, self.open_orders, LATER),
            "revoked tokens": stores.tokens.revoked,
            "Gateway lease": lambda: (
                stores.gateway_leases.heartbeat("gateway:1", 10.0),
                stores.gateway_leases.heartbeat("gateway:1", 10.0),
                stores.gateway_leases.end("gateway:1"),
            ),
            "acknowledgements": lambda: stores.apply_acks.ack("w", 7, "gateway:1", "gateway"),
            "recovery of submissions": lambda: stores.log.waiting(10_000),
            "recovery of applies": lambda: (
                stores.apply_requests.unfinished(),
                stores.apply_requests.unfinished_aborts(),
                stores.approvals.unread(),
            ),
            "recovery of rebalancings": lambda: (
                stores.rebalancings.requests.unfinished(),
                stores.rebalancings.approvals.unread(),
            ),
            "recovery of schedules": stores.rebalance_schedules.unsettled,
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
        checked = NodeValidation(node_id="n", execution_domain="backtest", eval_key="v5")
        stores = self.stores
        return {
            "submission": lambda: self.submit(uuid.uuid4().hex[:6]),
            "measurement": lambda: stores.runs.validated([checked], ""),
            "judgment": lambda: (self.judge(), stores.decisions.history("w", LATER - timedelta(days=41))),
            "promotion": self._promote,
            "apply": self._apply,
            "rule change": self._change_rules,
            "halts": self._halt,
            "reconciliation": self._reconcile,
            "dead letters": self._dead_letters,
            "access": self._access,
            "equity": partial(read_equity, self.database),
            "session": self._end_session,
            "cache hits": lambda: stores.cache_hits.count(CacheHits("r", "w", self.strategy, ["n"]), "ana"),
        }

    def _promote(self) -> None:
        for to in ("dryrun", "live"):
            self.promotions.progress("w", self.strategy, to)
        now = datetime.now(UTC)
        with self.database.read() as session:  # of a strategy with many sessions
            time_open(session, "w", "dryrun", {"strategy:s5": now - timedelta(days=7)}, now)
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
        approvals.record_direct(self.signal(run))
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
        with contextlib.suppress(QmtlError):  # there is nothing to go back to
            self.desk.request(rollback_of=run)

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

    def _reconcile(self) -> None:
        """What a broker with books makes the router read; nothing is held at its account."""
        books = self.stores.reconciliations
        fill = Fill(fill_id="f", quantity=Decimal(1), price=Decimal(1), account="elsewhere")
        ids = [item.order.order_id for item in self.stores.order_log.orders("w")][:2]
        books.newest("paper"), books.holdings("elsewhere")
        books.trading(Domain.DRYRUN)
        books.placed(ids)
        books.unrecorded({name: [fill] for name in ids})
        books.halt("w", "reconciliation")
        self.stores.apply_steps.resume("w", "olga", "x")

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
        principals.add(f"p{uuid.uuid4().hex[:6]}", "olga")
        self.token("p1")
        tokens.states(["t1", "t2"])
        tokens.revoke("t3", "olga")
        principals.disable("p1", "olga")

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
        headers = {"authorization": f"Bearer {self.token(grants=grants)}"}
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
