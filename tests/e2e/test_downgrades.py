"""Every reason for which a context is closed.

As the Gateway answers, as the SDK holds to it, and as the fence takes an order that comes all the same.
"""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.decisions.sql import SqlDecisionStore
from activities.fence.activations import change_activations, stored_activations
from activities.storage.tables import FenceRow
from qmtl_sdk import CsvSource, QmtlError, Strategy, StreamInput
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope, StrategyDecision
from qmtl_sdk.contracts.domains import ComputeContext, DeclaredClock, Domain, Downgrade
from qmtl_sdk.contracts.orders import Order
from qmtl_sdk.contracts.sessions import SessionOpen
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck, SubmissionMeta, SubmissionOutcome
from qmtl_sdk.contracts.worlds import WorldUpdate
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.runtime.decided import decided_context
from qmtl_sdk.runtime.manual_gate import ManualOrderGate
from qmtl_sdk.runtime.routes.running import SessionKey
from tests.support.desk import new_order_id
from tests.support.machine import Machine
from tests.support.strategies import Trend
from tests.support.worlds import POLICY, world


class Own(Strategy):
    """Brings its own prices: the services know neither their end nor their fingerprint."""

    def setup(self) -> None:
        self.add_nodes(
            [StreamInput(interval="1d", period=5, source=CsvSource(Path("prices.csv"), interval="1d"))]
        )


class OnClock(Strategy):
    """Declares the clock that it is meant for."""

    def __init__(self, clock: DeclaredClock) -> None:
        super().__init__()
        self.clock = clock

    def setup(self) -> None:
        self.add_nodes([StreamInput(interval="1d", period=5, tags=["AAPL", "price"], clock=self.clock)])


class Standing:
    """A strategy in some stage of a world of its own, with a client that always hints at live."""

    def __init__(self, machine: Machine, strategy: Strategy) -> None:
        self.machine = machine
        self.client = machine.client()
        self.build = BuiltStrategy(strategy)
        self.world = "w" + uuid.uuid4().hex[:10]
        self.strategy_id = self.build.dag.strategy_id
        self.client._call(
            "POST",
            "/worlds",
            json={"spec": {**world(self.world), "allow_live": True}, "policy": POLICY},
            headers={"X-Allow-Live": "true"},
        )

    def stands(self, mode: str, age_s: float = 0.0) -> None:
        """Judged `age_s` ago, and switched on in this mode."""
        at = datetime.now(UTC) - timedelta(seconds=age_s)
        decision = StrategyDecision(strategy_id=self.strategy_id, active=True, weight=1.0)
        base: dict[str, Any] = {
            "world_id": self.world,
            "policy_version": 1,
            "effective_mode": mode,
            "reason": "r",
            "as_of": at,
            "etag": uuid.uuid4().hex,
        }
        database = self.machine.database()
        try:
            SqlDecisionStore(database).save_decision(
                (uuid.uuid4().hex,), DecisionEnvelope(**base, decided_at=at, strategies=(decision,)), "judge"
            )
            with database.write("test") as tx:
                stored = stored_activations(tx.session, self.world)
                after = ActivationEnvelope.model_validate(
                    {**stored[self.strategy_id].model_dump(), "effective_mode": mode, "etag": mode}
                )
                change_activations(tx, tx.session.get_one(FenceRow, self.world), [after], stored)
        finally:
            database.close()

    def gateway(self) -> ComputeContext:
        return self.client.dry_run(self.submission()).context

    def submission(self) -> StrategySubmit:
        return StrategySubmit(
            world_id=self.world,
            dag=self.build.dag,
            node_ids_crc32=self.build.crc32,
            idempotency_key=uuid.uuid4().hex,
            meta=SubmissionMeta(execution_domain="live"),
        )

    def submitted(self) -> None:
        """Submitted, and computed by nobody."""
        self.client.submit(self.submission())

    def sdk(self, context: ComputeContext) -> ComputeContext:
        """What the SDK makes of the Gateway's context and of the decision and activation that it was answered
        with.
        """
        decisions, activations = self.client.decisions(self.world), self.client.activation(self.world)
        outcome = None
        if decisions:
            outcome = SubmissionOutcome(
                world_id=self.world,
                strategy_id=self.strategy_id,
                run_id="r",
                status="decided",
                decision=decisions[0],
                activation=activations[0],
            )
        return decided_context(
            SubmissionAck.model_construct(world_id=self.world, context=context), outcome, datetime.now(UTC)
        )

    def orders(self) -> tuple[list[Order], SessionKey]:
        """For dryrun and for live, with a session where one is to be had."""
        try:
            wanted = SessionOpen(world_id=self.world, strategy_id=self.strategy_id, runner=uuid.uuid4().hex)
            session = SessionKey.of(self.client.open_session(wanted))
        except QmtlError as error:
            if error.code not in ("E_SESSION_INACTIVE", "E_STRATEGY_UNKNOWN"):
                raise
            session = SessionKey("none")
        base = {
            "world_id": self.world,
            "strategy_id": self.strategy_id,
            "session_id": session.session_id,
            "epoch": self.client.fence(self.world).epoch,
            "symbol": "AAPL",
            "side": "buy",
            "quantity": "1",
        }
        orders = [
            Order.model_validate(
                {
                    **base,
                    "order_id": new_order_id(self.world, self.strategy_id),
                    "execution_domain": domain,
                }
            )
            for domain in ("dryrun", "live")
        ]
        return orders, session


def unjudged(machine: Machine) -> Standing:
    return Standing(machine, Trend())


def stale(machine: Machine) -> Standing:
    found = Standing(machine, Trend())
    found.stands("live", age_s=301)
    return found


def not_allowed(machine: Machine) -> Standing:
    found = Standing(machine, Trend())
    found.stands("live")
    found.client.update_world(found.world, WorldUpdate(allow_live=False))
    return found


def no_fingerprint(machine: Machine) -> Standing:
    found = Standing(machine, Own())
    found.stands("live")
    return found


def no_as_of(machine: Machine) -> Standing:
    found = Standing(machine, Own())
    found.stands("paper")
    return found


def unknown_mode(machine: Machine) -> Standing:
    found = Standing(machine, Trend())
    found.stands("moon")
    return found


def another_clock(machine: Machine) -> Standing:
    found = Standing(machine, OnClock("virtual"))
    found.stands("live")
    return found


WAYS = {
    Downgrade.DECISION_UNAVAILABLE: unjudged,
    Downgrade.STALE_DECISION: stale,
    Downgrade.LIVE_NOT_ALLOWED: not_allowed,
    Downgrade.MISSING_FINGERPRINT: no_fingerprint,
    Downgrade.MISSING_AS_OF: no_as_of,
    Downgrade.UNKNOWN_MODE: unknown_mode,
    Downgrade.CLOCK_CONFLICT: another_clock,
}


def test_every_reason_has_a_way() -> None:
    assert set(WAYS) == set(Downgrade)


@pytest.mark.parametrize("reason", WAYS, ids=lambda reason: reason.value)
def test_a_closed_context_is_closed_at_the_gateway_in_the_sdk_and_at_the_fence(
    machine: Machine, reason: Downgrade
) -> None:
    standing = WAYS[reason](machine)
    with standing.client:
        told = standing.gateway()
        assert (told.execution_domain, told.downgrade_reason, told.downgraded, told.safe_mode) == (
            Domain.BACKTEST,
            reason,
            True,
            True,
        )
        mine = standing.sdk(told)
        assert (mine.execution_domain, mine.downgrade_reason, mine.downgraded, mine.safe_mode) == (
            Domain.BACKTEST,
            reason,
            True,
            True,
        )
        gate = ManualOrderGate()
        gate.enabled = True
        assert not gate.send({"side": "buy"}, mine)
        assert gate.blocked == {reason.value: 1}
        assert [verdict.accepted for verdict in standing.client.publish_orders(*standing.orders())] == [
            False,
            False,
        ]
        assert standing.client.fence(standing.world).orders.get("accepted", 0) == 0


def test_a_fresh_live_decision_is_what_it_takes(machine: Machine) -> None:
    """The same hint, with everything in place: else the table above would show nothing."""
    standing = Standing(machine, Trend())
    standing.stands("live")
    with standing.client:
        told = standing.gateway()
        assert (told.execution_domain, told.downgrade_reason, told.safe_mode) == (Domain.LIVE, None, False)
        assert standing.sdk(told).execution_domain is Domain.LIVE


@pytest.mark.parametrize(("mode", "clock"), [("validate", "wall"), ("paper", "wall"), ("live", "virtual")])
def test_a_session_is_refused_where_the_strategy_declares_another_clock_than_its_domain_has(
    machine: Machine, mode: str, clock: DeclaredClock
) -> None:
    standing = Standing(machine, OnClock(clock))
    with standing.client:
        standing.submitted()
        standing.stands(mode)
        context = standing.gateway()
        assert (context.downgrade_reason, context.safe_mode) == (Downgrade.CLOCK_CONFLICT, True)
        wanted = SessionOpen(world_id=standing.world, strategy_id=standing.strategy_id, runner="r")
        with pytest.raises(QmtlError, match=r"clock_conflict.*E_SESSION_INACTIVE"):
            standing.client.open_session(wanted)


@pytest.mark.parametrize(("mode", "clock"), [("paper", "virtual"), ("live", "wall")])
def test_a_strategy_that_declares_the_clock_of_its_domain_runs(
    machine: Machine, mode: str, clock: DeclaredClock
) -> None:
    standing = Standing(machine, OnClock(clock))
    with standing.client:
        standing.submitted()
        standing.stands(mode)
        context = standing.gateway()
        assert (context.downgrade_reason, context.safe_mode) == (None, False)
        wanted = SessionOpen(world_id=standing.world, strategy_id=standing.strategy_id, runner="r")
        assert standing.client.open_session(wanted).context.clock == clock
