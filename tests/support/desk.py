"""Worlds and orders of the tests of the fence."""

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text

from activities.applies.approvals import SqlApprovals
from activities.applies.requests import SqlApplyRequests
from activities.applies.rule_changes import SqlRuleChanges
from activities.applies.steps import SqlApplySteps
from activities.artifacts.folder import FolderArtifacts
from activities.brokers.broker import Broker
from activities.brokers.router import OrderRouter
from activities.decisions.activities import DecisionActivities, DecisionStores
from activities.decisions.sql import SqlDecisionStore
from activities.fence.callers import OrderCaller
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.store import SqlFenceStore
from activities.messages.apply import FenceChange
from activities.messages.evaluation import JudgeCommand
from activities.messages.submission import EvidenceBody
from activities.sessions.sql import SqlSessionStore
from activities.storage.database import Database
from activities.storage.tables import FenceRow, OpenOrderRow, ProcessRow
from activities.submissions.runs import SqlRunStore
from activities.worlds.policies import SqlPolicyStore
from activities.worlds.specs import SqlWorldStore
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.decisions import DecisionEnvelope, StrategyDecision
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.orders import Order, order_id_prefix
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.sessions import SessionOpen
from qmtl_sdk.contracts.targets import Target
from qmtl_sdk.contracts.worlds import WorldSpec
from tests.support.admissions import begin_run, run_of

NEVER_PAST = "9999-12-31T00:00:00+00:00"
FINGERPRINT = "blake3:" + "f" * 64
GATED: dict[str, Any] = {
    "selection": {"gates": {"and": ["sharpe >= 0"]}, "score": "sharpe"},
    "gating_policy": {
        "domains": {"from": "backtest", "to": "live"},
        "dataset_fingerprint": FINGERPRINT,
        "share_policy": "feature-artifacts-only",
        "approvals": {"required": 1, "live": 1},
        "apply": {"freeze_timeout_ms": 2000, "drain_timeout_ms": 3000},
    },
    "decision_ttl": 3600,
}


def new_order_id(world: str, strategy: str, number: int | None = None) -> str:
    """A new id of an order; those with a number sort by it."""
    return order_id_prefix(world, strategy) + (uuid.uuid4().hex if number is None else f"{number:032x}")


def policy(**gating: Any) -> Policy:
    """`GATED` with other keys in its gating policy."""
    return policy_from({**GATED, "gating_policy": {**GATED["gating_policy"], **gating}})


def router(database: Database, broker: Broker, send_within_s: float = 300.0) -> OrderRouter:
    """A router that sends dryrun orders to one broker."""
    return OrderRouter(database, SqlOpenOrders(database, send_within_s), {Domain.DRYRUN: broker})


def stuck_order(world: str) -> OpenOrderRow:
    """An open order that no venue ends and no router finds."""
    return OpenOrderRow(
        order_id=f"order:{uuid.uuid4().hex}",
        world_id=world,
        strategy_id="strategy:stuck",
        execution_domain="dryrun",
        symbol="AAPL",
        quantity="1",
        epoch=1,
        accepted_at="2024",
        next_at="9999",
    )


class Desk:
    """A world with strategies whose evidence is good, in a store: what a promotion begins with."""

    def __init__(
        self,
        database: Database,
        world: str = "w",
        strategies: int = 1,
        allow_live: bool = True,
        found: Policy | None = None,
        **spec: Any,
    ) -> None:
        self._of(database, world)
        described = WorldSpec.model_validate({"world": world, "allow_live": allow_live, **spec})
        self.fence.create(described, found or policy(), "olga")
        self.strategies = [f"strategy:{world}{n}" for n in range(strategies)]
        for strategy in self.strategies:
            self.evidence(strategy)
        self.decide()
        self.route()

    def _of(self, database: Database, world: str) -> None:
        self.database, self.world = database, world
        self.fence = SqlFenceStore(database)
        self.rules = SqlRuleChanges(database)
        self.decisions = SqlDecisionStore(database)
        self.runs = SqlRunStore(database)
        self.requests = SqlApplyRequests(database)
        self.approvals = SqlApprovals(database)
        self.steps = SqlApplySteps(database)
        self.sessions = SqlSessionStore(database, 60.0)
        self.caller = OrderCaller("ana", {})

    @classmethod
    def found(cls, database: Database, world: str = "w") -> "Desk":
        """One that another process has made."""
        desk = cls.__new__(cls)
        desk._of(database, world)
        desk.strategies = [item.strategy_id for item in desk.fence.activations(world)]
        return desk

    def evidence(self, strategy: str, sharpe: float = 1.0, returns_hash: str = "", **fields: Any) -> None:
        run = uuid.uuid4().hex
        found = run_of(run, strategy, self.world, strategy[9:])
        pinned = found.context.model_copy(update={"dataset_fingerprint": FINGERPRINT})
        begin_run(self.database, found.model_copy(update={"context": pinned}))
        self.runs.save_evidence(
            EvidenceBody.model_validate(
                {
                    "run_id": run,
                    "world_id": self.world,
                    "strategy_id": strategy,
                    "metrics": {"sharpe": sharpe},
                    "returns_hash": returns_hash,
                    "dataset_fingerprint": FINGERPRINT,
                    **fields,
                }
            )
        )

    def judge(self, artifacts: Path) -> dict[str, StrategyDecision]:
        """Judge the world by its evidence. Returns the decisions by strategy."""
        stores = DecisionStores(
            SqlWorldStore(self.database),
            SqlPolicyStore(self.database),
            self.decisions,
            self.fence,
            FolderArtifacts(artifacts),
        )
        request = uuid.uuid4().hex
        command = JudgeCommand(
            store_id=self.database.store_id, world_id=self.world, run_id="judge", request_ids=(request,)
        )
        DecisionActivities(stores).judge(command)
        decision = self.decisions.answer(request)
        assert decision is not None
        return {item.strategy_id: item for item in decision.strategies}

    def decide(
        self, active: bool = True, ttl: int = 3600, at: datetime | None = None, weight: float | None = None
    ) -> DecisionEnvelope:
        share = weight if weight is not None else 1 / len(self.strategies)
        decisions = tuple(
            StrategyDecision(
                strategy_id=name, name=name[9:], active=active, weight=share if active else 0.0, score=1.0
            )
            for name in self.strategies
        )
        envelope = DecisionEnvelope(
            world_id=self.world,
            policy_version=1,
            effective_mode="validate",
            reason="r",
            as_of=at or datetime.now(UTC),
            decided_at=at or datetime.now(UTC),
            ttl=ttl,
            etag=uuid.uuid4().hex,
            strategies=decisions,
        )
        return self.decisions.save_decision((uuid.uuid4().hex,), envelope, "judge").envelope

    def apply(self, to: str | None = None, run_id: str | None = None, **fields: Any) -> str:
        """An apply from its request to its end, step by step."""
        run = self.request(to, run_id, **fields)
        self.freeze(run)
        self.steps.drain(self.world, run)
        self.steps.switch(self.world, run)
        self.steps.unfreeze(self.world, run)
        self.steps.conclude(self.world, run, "completed", "")
        return run

    def approve(self, run: str, people: int | None = None) -> None:
        """As many approvals of an apply as it needs, or `people`."""
        plan = self.requests.find(self.world, run).plan
        for number in range(plan.approval.required if people is None else people):
            self.approvals.record(self.world, run, f"approver{number}", "approve", ApprovalBody())

    def freeze(self, run: str) -> FenceChange:
        """The first step of an apply, once it was approved."""
        self.approve(run)
        return self.steps.freeze(self.world, run)

    def request(self, to: str | None = None, run_id: str | None = None, **fields: Any) -> str:
        run = run_id or f"run-{uuid.uuid4().hex[:8]}"
        self.requests.request(
            self.world, ApplyRequest.model_validate({"run_id": run, "to": to, **fields}), "olga"
        )
        return run

    def session(self, strategy: str | None = None, domain: str = "dryrun", actor: str = "ana") -> str:
        """A session, whose secret `caller` holds from then on."""
        wanted = SessionOpen(
            world_id=self.world, strategy_id=strategy or self.strategies[0], runner="r", host="h"
        )
        opened = self.sessions.open(wanted, "s", domain, actor)
        secrets = {**self.caller.secrets, opened.info.session_id: opened.secret}
        self.caller = OrderCaller(self.caller.subject, secrets)
        return opened.info.session_id

    def end_sessions(self) -> None:
        for item in self.sessions.all(self.world):
            self.sessions.end(item.session_id, "stopped", item.actor)

    def route(self, worked_at: str = NEVER_PAST, state: str = "running") -> None:
        """Say when an order router last worked; live orders need one."""
        row = ProcessRow(
            process_id="router",
            name="router",
            pid=0,
            host="",
            state=state,
            fault="",
            started_at="",
            since="",
            seen_at=NEVER_PAST,
            worked_at=worked_at,
        )
        with self.database.write("router", bookkeeping=True) as tx:
            tx.upsert(row)

    def order(self, session: str, epoch: int, **fields: Any) -> Order:
        base = self._request(session, epoch, fields)
        return Order.model_validate({**base, "side": "buy", "quantity": "1", **fields})

    def target(self, session: str, epoch: int, **fields: Any) -> Target:
        base = self._request(session, epoch, fields)
        return Target.model_validate({**base, "decided_at": datetime(2024, 1, 2, tzinfo=UTC), **fields})

    def _request(self, session: str, epoch: int, fields: dict[str, Any]) -> dict[str, Any]:
        world, strategy = fields.get("world_id", self.world), fields.get("strategy_id", self.strategies[0])
        return {
            "order_id": new_order_id(world, strategy),
            "world_id": world,
            "strategy_id": strategy,
            "session_id": session,
            "execution_domain": "dryrun",
            "epoch": epoch,
            "symbol": "AAPL",
            "reference_price": "100",
        }

    @property
    def epoch(self) -> int:
        return self.fence_row().epoch

    def fence_row(self) -> Any:
        with self.database.read() as session:
            return session.get_one(FenceRow, self.world)

    def logged(self) -> list[str]:
        """What the order log tells of this world, by kind, oldest first."""
        with self.database.read() as session:
            return list(
                session.connection()
                .execute(
                    text("SELECT kind FROM order_log WHERE world_id = :world ORDER BY seq"),
                    {"world": self.world},
                )
                .scalars()
            )
