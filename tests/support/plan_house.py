"""An installation in which a little of everything has happened, so that each table has a row."""

import contextlib
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from activities.decisions.activities import DecisionActivities
from activities.events.bus import SqliteBus
from activities.events.relay import Relay
from activities.fence.acceptance import OrderAcceptance
from activities.fence.open_orders import SqlOpenOrders
from activities.messages.apply import DirectApproval
from activities.messages.evaluation import JudgeCommand
from activities.messages.submission import AdmitRun, EvidenceBody
from activities.promotions.sql import SqlPromotions
from activities.settings import Settings
from activities.stores import Stores
from api.gateway import create_app
from qmtl_sdk import Node, Strategy, StreamInput, TagQueryNode
from qmtl_sdk.contracts.access import EVERY_WORLD, Role, TokenRequest
from qmtl_sdk.contracts.allocations import AllocationUpdate, WorldAllocation
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Fill, FillBatch, ReportedFill
from qmtl_sdk.contracts.ledger import Booking
from qmtl_sdk.contracts.orders import OrderReport, WithheldOrder
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck, SubmissionOutcome
from qmtl_sdk.nodes.strategy import BuiltStrategy
from tests.support.admissions import run_of
from tests.support.desk import Desk, policy
from tests.support.plan_trading import rebalance

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
        self.config = Settings.model_validate(
            {
                "home": home,
                "gateway": {"database_dsn": dsn},
                "orders": {"account_limits": {"paper": {"max_loss": "1000000"}}},
            }
        )
        self.stores = Stores.open(self.config)
        self.database = self.stores.database
        found = policy(approvals={"required": 1, "policy": 1})
        limits = {"strategy": {"max_position": "1000000"}}
        self.desk = Desk(self.database, strategies=2, found=found, order_limits=limits)
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
        self.stores.approvals.record_direct(self.signal(run))
        with contextlib.suppress(QmtlError):
            self.stores.rule_changes.add_policy("w", policy(approvals={"required": 0}), "olga")
        self.trade()
        self.submit("A")
        self.stores.apply_acks.ack("w", 1, "gateway:1", "gateway")
        outcome = SubmissionOutcome(world_id="w", strategy_id=self.strategy, run_id="first", status="failed")
        self.stores.runs.save_outcome(outcome)
        self.stores.principals.add_if_new("olga", "system")
        self.token()
        self.session = self.desk.session()
        self.judge()
        rebalance(self.stores, self.open_orders, LATER)

    def trade(self) -> None:
        """Send two orders, and let the router handle one."""
        session = self.desk.session()
        orders = [self.desk.order(session, self.desk.epoch) for _ in range(2)]
        verdicts = self.stores.orders.publish(orders, self.desk.caller)
        assert all(verdict.accepted for verdict in verdicts)
        wanted = {"unit": "units", "value": "9", "symbol": uuid.uuid4().hex}
        target = self.desk.target(session, self.desk.epoch, **wanted)
        new_gateway = OrderAcceptance(self.database, self.config.orders)  # which has read no world yet
        (answer,) = new_gateway.publish([target], self.desk.caller)
        assert answer.accepted, answer
        held = self.desk.order(session, self.desk.epoch)
        self.stores.withheld.record([WithheldOrder(order=held, reason="closed")], self.desk.caller)
        due = self.open_orders.due(Domain.DRYRUN, 500)["w"]
        sent = self.open_orders.mark_sent("w", due, 60.0)
        first = sent[0]
        self.open_orders.record("w", [OrderReport(order_id=first.order_id, state="cancelled")], {})
        fill = self.fill()
        report = OrderReport(order_id=sent[1].order_id, state="partially_filled", fills=(fill,))
        self.open_orders.record("w", [report], {sent[1]: 0.0})
        more = ReportedFill(order_id=sent[1].order_id, fill=self.fill())
        self.stores.fills.record(FillBatch(world_id="w", fills=(more,)), "olga")
        ended = ReportedFill(order_id=first.order_id, fill=self.fill())
        self.stores.fills.record(FillBatch(world_id="w", fills=(ended,)), "olga")
        self.stores.bookings.record("w", self.reversal(fill), "olga")
        share = WorldAllocation(world_id="w", weight=Decimal(1) / len(fill.fill_id))
        self.stores.allocations.update(AllocationUpdate(allocations=(share,)), "olga")
        self.open_orders.delay("w", {sent[1]: 0.0})

    @staticmethod
    def fill() -> Fill:
        """A fill of its own."""
        found = {"fill_id": uuid.uuid4().hex, "quantity": "0.1", "price": "9", "account": "paper"}
        return Fill.model_validate(found)

    def reversal(self, fill: Fill) -> Booking:
        return Booking.model_validate(
            {
                "booking_id": fill.fill_id,
                "kind": "reversal",
                "strategy_id": self.strategy,
                "account": fill.account,
                "symbol": "AAPL",
                "corrects": fill.fill_id,
                "reason": "wrong",
            }
        )

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

    def token(self, subject: str = "olga", grants: dict[str, Role] | None = None) -> str:
        request = TokenRequest(subject=subject, grants=grants or {EVERY_WORLD: Role.OWNER})
        return self._tokens().issue(request, "olga").token

    def _tokens(self) -> Any:
        from api.auth.keys import KeyRing
        from api.auth.tokens import Tokens

        return Tokens(KeyRing(self.config.keys_path), self.stores.tokens, self.database.store_id)

    def signal(self, run: str) -> DirectApproval:
        return DirectApproval(
            store_id=self.database.store_id,
            approval_id=uuid.uuid4().hex,
            world_id="w",
            run_id=run,
            actor="x",
            verdict="approve",
            reason="",
        )
