"""The world in which a chaos run trades, and how an operator asks something of it."""

import random
import threading
import uuid
from collections.abc import Callable
from typing import Any

from activities.applies.requests import SqlApplyRequests
from qmtl_sdk import QmtlError, Runner
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.runtime.client import GatewayClient
from tests.support.machine import Machine, wait_for
from tests.support.strategies import Trend
from tests.support.worlds import POLICY, WORLD

SYMBOLS = ("AAPL", "JNJ", "KO", "MSFT")
# How long a decision is valid, in seconds: short, so that a run can wait until one is stale.
TTL_S = 5


def attempt(call: Callable[[], object]) -> bool:
    """Make a call that may be refused: an approval too late, an abort after the switch.

    Returns whether it was accepted.
    """
    try:
        call()
    except QmtlError as error:
        if error.status >= 500 and error.code not in ("E_UNAVAILABLE", "E_RECORDED"):
            raise
        return error.code == "E_RECORDED"  # a Gateway carries it out later
    return True


class OrderWorld:
    """A world with four strategies that pass, two people, and a fingerprint that is pinned.

    While `stale` is set, its decision is not renewed.
    """

    def __init__(self, machine: Machine, seed: int) -> None:
        self._machine = machine
        self.name = f"orders{seed}x{uuid.uuid4().hex[:6]}"
        self.stale = threading.Event()
        self.client = machine.client(away_limit_s=120.0)
        self.token = machine.token()
        self.ana = GatewayClient(machine.urls[-1], machine.token("ana"), away_limit_s=120.0)
        self.client._call(
            "POST",
            "/worlds",
            json={"spec": {**WORLD, "world": self.name, "allow_live": True}, "policy": POLICY},
            headers={"X-Allow-Live": "true"},
        )
        self.strategies = [
            Runner.submit(Trend(symbol), world=self.name, config=machine.config, run=False).strategy_id
            for symbol in SYMBOLS
        ]
        database = machine.database()
        try:
            fingerprints = {
                candidate.dataset_fingerprint
                for candidate in SqlApplyRequests(database).planning_context(self.name).evidence.values()
            }
        finally:
            database.close()
        gating = {
            "domains": {"from": "backtest", "to": "live"},
            "dataset_fingerprint": fingerprints.pop(),
            "share_policy": "feature-artifacts-only",
            "approvals": {"required": 1, "live": 1},
            "apply": {"freeze_timeout_ms": 1500, "drain_timeout_ms": 4000},
        }
        if fingerprints:
            raise AssertionError("the strategies were judged on different data")
        self.policy = {**POLICY, "gating_policy": gating, "decision_ttl": TTL_S}
        self.closed_policy = {**self.policy, "selection": {"gates": {"and": ["sharpe >= 50"]}}}
        self.client.add_policy(self.name, self.policy)
        self.client.decide(self.name, uuid.uuid4().hex)

    def close(self) -> None:
        self.client.close()
        self.ana.close()

    def renew_decisions(self, stop: threading.Event) -> None:
        """Judge the world repeatedly, so that its decision is fresh, except where it shall become stale."""
        with self._machine.client(away_limit_s=5.0) as client:
            while not stop.wait(TTL_S / 5):
                if not self.stale.is_set():
                    attempt(lambda: client.decide(self.name, uuid.uuid4().hex))

    def request_apply(self, rng: random.Random, **wanted: Any) -> bool:
        """Request an apply of all strategies and approve it at once; return whether both were accepted."""
        weights = (
            {} if "rollback_of" in wanted else {name: round(rng.random() / 4, 4) for name in self.strategies}
        )
        accepted = attempt(
            lambda: self.client.apply(self.name, ApplyRequest(**wanted, weights=weights), live=True)
        )
        return accepted and attempt(
            lambda: self.ana.approve(self.name, wanted["run_id"], ApprovalBody(), live=True)
        )

    def carry_out(self, rng: random.Random, **wanted: Any) -> None:
        """An apply to its end, and orders since; one that is refused is let be."""
        self.request_apply(rng, **wanted)
        attempt(lambda: self.client.apply_status(self.name, wanted["run_id"], wait_s=20))
        self.await_trading()

    def await_trading(self) -> None:
        """Until the traders have brought a good many orders since: only what is tried can be found."""
        before = sum(self.client.fence(self.name).orders.values())
        wait_for(lambda: sum(self.client.fence(self.name).orders.values()) > before + 200, "orders", 60)

    def resume(self) -> None:
        attempt(lambda: self.client.resume(self.name, "chaos"))
