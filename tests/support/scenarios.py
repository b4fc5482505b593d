"""Worlds with people and a strategy, driven through a running Gateway."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from activities.storage.tables import OpenOrderRow
from qmtl_sdk import Runner
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus, ApprovalBody
from qmtl_sdk.contracts.promotions import PromotionRequest, PromotionView
from qmtl_sdk.contracts.sessions import SessionOpen
from qmtl_sdk.runtime.client import GatewayClient
from tests.support.desk import stuck_order
from tests.support.machine import Machine, wait_for
from tests.support.strategies import Trend
from tests.support.worlds import POLICY, world

GATING: dict[str, Any] = {
    "domains": {"from": "backtest", "to": "live"},
    "share_policy": "feature-artifacts-only",
    "approvals": {"required": 1, "live": 2},
    "apply": {"freeze_timeout_ms": 5000, "drain_timeout_ms": 3000},
}


def person(machine: Machine, name: str, role: Role = Role.OPERATOR) -> GatewayClient:
    """Someone with a token of their own; ana and ben have those that the stack left."""
    left = name in ("ana", "ben") and role is Role.OPERATOR
    return GatewayClient(machine.url, machine.token(name) if left else machine.issue(name, {"*": role}).token)


class ApplyScenario:
    """A world in which one strategy passes, and two people besides the one who asks."""

    def __init__(self, machine: Machine, name: str, gating: dict[str, Any] | None = None) -> None:
        self.machine = machine
        self.client = machine.client()
        self.world = name
        self.ana = person(machine, "ana")
        self.ben = person(machine, "ben")
        self.client._call(
            "POST",
            "/worlds",
            json={"spec": {**world(name), "allow_live": True}, "policy": POLICY},
            headers={"X-Allow-Live": "true"},
        )
        result = Runner.submit(Trend, world=name, config=machine.config, run=False)
        self.strategy = result.strategy_id
        self.fingerprint = self.client.fingerprints(name)[0]
        self.policy = {
            **POLICY,
            "gating_policy": {**GATING, **(gating or {}), "dataset_fingerprint": self.fingerprint},
            "decision_ttl": 3600,
        }
        self.client.add_policy(name, self.policy)
        self.client.decide(name, uuid.uuid4().hex)

    def ask(self, to: str | None = "dryrun", **fields: Any) -> ApplyStatus:
        request = ApplyRequest.model_validate({"run_id": f"run-{uuid.uuid4().hex[:8]}", "to": to, **fields})
        return self.client.apply(self.world, request, live=True)

    def at(self, run_id: str, state: str) -> ApplyStatus:
        return wait_for(
            lambda: found if (found := self.client.apply_status(self.world, run_id)).state == state else None,
            state,
        )

    def promote(self, to: str, *people: GatewayClient) -> ApplyStatus:
        run = self.ask(to).run_id
        self.at(run, "approval")
        for one in people:
            one.approve(self.world, run, ApprovalBody(), live=True)
        return self.client.apply_status(self.world, run, wait_s=30)

    def drains(self, to: str) -> str:
        """An apply that everyone agrees to and that waits for open orders; its run_id."""
        run = self.ask(to).run_id
        self.at(run, "approval")
        for one in (self.ana, self.ben):
            one.approve(self.world, run, ApprovalBody(), live=True)
        self.at(run, "drain")
        return run

    @contextmanager
    def stuck_order(self) -> Iterator[Callable[[], None]]:
        """An accepted order that no venue ends; gives what ends it."""
        database = self.machine.database()
        stuck = stuck_order(self.world)
        order_id = stuck.order_id

        def unstick() -> None:
            with database.write("test", bookkeeping=True) as tx:
                found = tx.session.get(OpenOrderRow, order_id)
                if found is not None:
                    tx.session.delete(found)

        try:
            with database.write("test", bookkeeping=True) as tx:
                tx.session.add(stuck)
            yield unstick
            unstick()
        finally:
            database.close()

    def mode(self) -> tuple[bool, str | None]:
        found = next(item for item in self.client.activation(self.world) if item.strategy_id == self.strategy)
        return found.active, found.effective_mode

    def close(self) -> None:
        for client in (self.client, self.ana, self.ben):
            client.close()


class PromotionScenario(ApplyScenario):
    """A stage whose strategy is promoted."""

    def promotion(self, to: str = "dryrun", **fields: Any) -> PromotionView:
        return self.client.promote(
            self.world, PromotionRequest.model_validate({"strategy": "Trend", "to": to, **fields}), live=True
        )

    def view(self) -> PromotionView:
        return self.client.promotion(self.world, self.strategy)

    def waits(self, *words: str) -> PromotionView:
        return wait_for(
            lambda: found if all(word in (found := self.view()).waits_for for word in words) else None,
            " … ".join(words),
        )

    def asked(self, after: str = "") -> ApplyStatus:
        """The apply that the promotion asks for next, once it waits for approval."""
        run = wait_for(
            lambda: run if (run := self.view().apply_run) and run != after else None,
            "an apply of the promotion",
        )
        return self.at(run, "approval")

    def ended(self) -> PromotionView:
        return wait_for(lambda: found if (found := self.view()).outcome else None, "end of the promotion")

    def campaign(self) -> None:
        """Until the strategy has been active in backtest for long enough."""
        wait_for(
            lambda: "an apply may take it there" in self.client.explain(self.world, "Trend").lines[-1],
            "the campaign's window",
        )

    def run(self) -> datetime:
        """Open a session of the strategy, which counts for its campaign. Returns when it was opened."""
        wanted = SessionOpen(world_id=self.world, strategy_id=self.strategy, runner="r")
        opened = self.client.open_session(wanted).session_id
        # Not the time of the answer, which comes after the session was stored.
        return next(item.opened_at for item in self.client.sessions(self.world) if item.session_id == opened)

    def submit(self) -> None:
        Runner.submit(Trend, world=self.world, config=self.machine.config, run=False)

    def said(self) -> list[tuple[str, str]]:
        """What the audit trail says of promotions: action and actor."""
        entries = self.client.audit(self.world, limit=1000)["entries"]
        return [
            (item["action"], item["actor"]) for item in entries if item["action"].startswith("promotion.")
        ]
