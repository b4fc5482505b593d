"""Kill worker, Gateway, Temporal server and runners while four runners trade without pause and one apply
follows another; then let the order log and the audit trail speak.

An operator asks for applies and rollbacks, approves, rejects, aborts, halts, resumes, takes live away in the
midst of it, closes the edge, lets decisions become stale, sets a circuit breaker. Every choice is seeded. At
the end everything is left alone until it rests, and `checker` reads what was written.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from activities.applies.requests import SqlApplyRequests
from activities.fence.store import SqlFenceStore
from qmtl_sdk import QmtlError, Runner
from qmtl_sdk.contracts.access import Role, TokenRequest
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.worlds import CircuitBreaker, EdgeOverride, WorldUpdate
from qmtl_sdk.runtime.client import GatewayClient
from tests.support import ROOT
from tests.support.machine import Machine, wait_for
from tests.support.order_checker import order_violations
from tests.support.strategies import Trend
from tests.support.worlds import POLICY, WORLD

VICTIMS = ("worker", "gateway", "temporal", "runner")
SYMBOLS = ("AAPL", "JNJ", "KO", "MSFT")
TTL_S = 5
ACTS = ("halt", "no_live", "close_edge", "let_it_become_stale", "switch_off", "break_circuit")


@dataclass
class Report:
    seed: int
    applies: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    orders: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        body = {
            "seed": self.seed,
            "applies": dict(self.applies),
            "kills": dict(self.kills),
            "orders": self.orders,
            "acknowledged": self.acknowledged,
        }
        return json.dumps(
            {
                **body,
                "violations": len(self.violations),
                "first": self.violations[:3],
                "seconds": round(self.seconds, 1),
            }
        )


class OrderChaos:
    """`leak`: the check that the Gateway's fence lacks."""

    def __init__(self, home: Path, leak: str = "", dsn: str | None = None) -> None:
        self._gateway = "tests.chaos.leaky_gateway" if leak else "api.gateway"
        env = {"QMTL_TEST_LEAK": leak} if leak else {}
        self.machine = Machine(
            home,
            dsn,
            **{
                "QMTL_EVENTS__HEARTBEAT_S": "0.5",
                "QMTL_GATEWAY__SESSION_LEASE_S": "3",
                "QMTL_GATEWAY__RATE_PER_S": "5000",
                "QMTL_ORDERS__PAPER_FILL_DELAY_S": "0.02",
                **env,
            },
        )
        self._traders: dict[int, subprocess.Popen[bytes]] = {}
        self._strategies: list[str] = []
        self._world = ""
        self._token = ""

    def up(self) -> "OrderChaos":
        machine = self.machine
        machine.start_temporal()
        machine.start_worker()
        machine.start_relay()
        machine.start_router()
        machine.start_gateway(self._gateway)
        return self

    def close(self) -> None:
        for number in list(self._traders):
            self._end_trader(number)
        self.machine.close()

    def run(self, seed: int, applies: int, kills: int | None = None, thorough: bool = False) -> Report:
        """`thorough`: everything that an operator does is done at least once, in a world that is live."""
        rng, report, began = random.Random(seed), Report(seed), time.monotonic()
        self._prepare(seed)
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._renew, args=(stop,)),
            threading.Thread(
                target=self._kill,
                args=(random.Random(seed + 1), stop, report, applies if kills is None else kills),
            ),
        ]
        for number in range(len(self._strategies)):
            self._start_trader(number, seed)
        for thread in threads:
            thread.start()
        try:
            if thorough:
                self._try_everything(rng)
            for number in range(applies):
                self._episode(rng, report, number)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self._rest(report)
        report.seconds = time.monotonic() - began
        return report

    # what happens

    def _try_everything(self, rng: random.Random) -> None:
        """Each act in a world that is live, and from one to the next by way of dryrun.

        A freeze must find strategies there, as live ones are kept out by the closed edge as well.
        """
        self._carry_out(rng, run_id="to-dryrun", to="dryrun")
        for number, act in enumerate(ACTS):
            self._carry_out(rng, run_id=f"to-live-{number}", to="live")
            self._act(act, rng)
            self._carry_out(rng, run_id=f"back-{number}", rollback_of=f"to-live-{number}")
        self._lose_the_worker_while_frozen(rng)

    def _carry_out(self, rng: random.Random, **wanted: Any) -> None:
        """An apply to its end, and orders since; one that is refused is let be."""
        self._ask(rng, **wanted)
        self._quietly(lambda: self.client.apply_status(self._world, wanted["run_id"], wait_s=20))
        self._await_trading()

    def _await_trading(self) -> None:
        """Until the traders have brought a good many orders since: only what is tried can be found."""
        before = sum(self.client.fence(self._world).orders.values())
        wait_for(lambda: sum(self.client.fence(self._world).orders.values()) > before + 200, "orders", 60)

    def _prepare(self, seed: int) -> None:
        """A world with four strategies that pass, two people, and a fingerprint that is pinned."""
        self._world, self._stale = f"orders{seed}x{uuid.uuid4().hex[:6]}", threading.Event()
        self.client = self.machine.client(away_limit_s=120.0)
        self._token = self.machine.token()
        ana = self.client.create_token(TokenRequest(subject="ana", grants={"*": Role.OPERATOR})).token
        self._ana = GatewayClient(self.machine.url, ana, away_limit_s=120.0)
        self.client._call(
            "POST",
            "/worlds",
            json={"spec": {**WORLD, "world": self._world, "allow_live": True}, "policy": POLICY},
            headers={"X-Allow-Live": "true"},
        )
        self._strategies = [
            Runner.submit(Trend(symbol), world=self._world, config=self.machine.config, run=False).strategy_id
            for symbol in SYMBOLS
        ]
        database = self.machine.database()
        try:
            fingerprints = {
                candidate.dataset_fingerprint
                for candidate in SqlApplyRequests(database).planning_context(self._world).evidence.values()
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
        self._policy = {**POLICY, "gating_policy": gating, "decision_ttl": TTL_S}
        self._closed = {**self._policy, "selection": {"gates": {"and": ["sharpe >= 50"]}}}
        self.client.add_policy(self._world, self._policy)
        self.client.decide(self._world, uuid.uuid4().hex)

    def _renew(self, stop: threading.Event) -> None:
        """Judge the world repeatedly, so that its decision is fresh, except where it shall become stale."""
        with self.machine.client(away_limit_s=5.0) as client:
            while not stop.wait(TTL_S / 5):
                if not self._stale.is_set():
                    self._quietly(lambda: client.decide(self._world, uuid.uuid4().hex))

    def _episode(self, rng: random.Random, report: Report, number: int) -> None:
        """Something that an operator does, mostly nothing, then an apply."""
        if rng.random() < 0.4:
            self._act(rng.choice(ACTS), rng)
        report.applies[self._apply(rng, f"run-{number}")] += 1

    def _act(self, act: str, rng: random.Random) -> None:
        getattr(self, f"_{act}")(rng)

    def _halt(self, rng: random.Random) -> None:
        self.client.halt(self._world, "chaos")
        time.sleep(0.2 + rng.random() * 0.3)
        self._resume()

    def _no_live(self, rng: random.Random) -> None:
        self.client.update_world(self._world, WorldUpdate(allow_live=False))
        time.sleep(0.3 + rng.random() * 0.5)
        self.client.update_world(self._world, WorldUpdate(allow_live=True), live=True)

    def _close_edge(self, rng: random.Random) -> None:
        self._quietly(
            lambda: self.client.override(
                self._world,
                EdgeOverride(src="domain:backtest", dst="domain:live", active=False, reason="chaos"),
            )
        )
        time.sleep(0.3 + rng.random() * 0.5)

    def _let_it_become_stale(self, _: random.Random) -> None:
        self._stale.set()
        time.sleep(TTL_S + 1)
        self._stale.clear()

    def _switch_off(self, rng: random.Random) -> None:
        for policy in (self._closed, self._policy):
            self.client.add_policy(self._world, policy)
            self.client.decide(self._world, uuid.uuid4().hex)
            time.sleep(0.3 + rng.random() * 0.3)

    def _break_circuit(self, _: random.Random) -> None:
        self.client.update_world(
            self._world, WorldUpdate(circuit_breaker=CircuitBreaker(max_orders_per_minute=20))
        )
        time.sleep(1.0)
        self.client.update_world(self._world, WorldUpdate(circuit_breaker=CircuitBreaker()))
        self._resume()

    def _lose_the_worker_while_frozen(self, rng: random.Random) -> None:
        """A world is frozen for a tenth of a second before it drains, too short for orders under the new
        epoch to come: now it stays so until there is a worker again.
        """
        database = self.machine.database()  # past the Gateway: a request takes half as long as the freeze
        try:
            worlds, applies = SqlFenceStore(database), SqlApplyRequests(database)
            for number in range(10):
                run_id = f"to-freeze-{number}"
                if not self._ask(rng, run_id=run_id, to="live"):
                    return  # what leaks here keeps strategies from coming so far
                wait_for(
                    lambda run_id=run_id: (
                        worlds.fence(self._world).state != "open" or applies.find(self._world, run_id).outcome
                    ),
                    "freeze",
                )
                self.machine.kill("worker")
                caught = worlds.fence(self._world).state == "frozen"
                if caught:
                    self._await_trading()
                self.machine.start_worker()
                wait_for(lambda: worlds.fence(self._world).state == "open", "unfreeze", 120)
                if caught:
                    return
                self._carry_out(rng, run_id=f"to-thaw-{number}", rollback_of=run_id)
        finally:
            database.close()

    def _ask(self, rng: random.Random, **wanted: Any) -> bool:
        """An apply of all strategies that is approved at once; whether it was taken."""
        weights = (
            {} if "rollback_of" in wanted else {name: round(rng.random() / 4, 4) for name in self._strategies}
        )
        taken = self._quietly(
            lambda: self.client.apply(self._world, ApplyRequest(**wanted, weights=weights), live=True)
        )
        return taken and self._quietly(
            lambda: self._ana.approve(self._world, wanted["run_id"], ApprovalBody(), live=True)
        )

    def _apply(self, rng: random.Random, run_id: str) -> str:
        """An apply to its end; how it ended, or why it was refused."""
        earlier = [item.run_id for item in self.client.applies(self._world, 5) if item.outcome == "completed"]
        if earlier and rng.random() < 0.3:
            wanted = {"run_id": run_id, "rollback_of": rng.choice(earlier)}
        else:
            left = rng.sample(self._strategies, rng.randint(1, len(self._strategies)))
            wanted = {
                "run_id": run_id,
                "to": rng.choice(("dryrun", "live")),
                "weights": {name: round(rng.random() / len(self._strategies), 3) for name in left},
            }
        try:
            found = self.client.apply(self._world, ApplyRequest.model_validate(wanted), live=True)
        except QmtlError as error:
            self._resume() if error.code == "E_WORLD_FROZEN" else None
            return error.code
        what = rng.random()
        self._quietly(
            lambda: (
                self._ana.approve(self._world, run_id, ApprovalBody(), live=True)
                if what > 0.07
                else self._ana.reject(self._world, run_id, ApprovalBody())
            )
        )
        if what > 0.9:
            time.sleep(rng.random() * 0.2)
            self._quietly(lambda: self.client.abort(self._world, run_id, "chaos"))
        elif what > 0.85:
            self._quietly(lambda: self.client.update_world(self._world, WorldUpdate(allow_live=False)))
        found = wait_for(
            lambda: (
                status
                if (status := self.client.apply_status(self._world, run_id, wait_s=20)).outcome
                else None
            ),
            f"end of {run_id}",
            120,
        )
        if 0.85 < what <= 0.9:
            self.client.update_world(self._world, WorldUpdate(allow_live=True), live=True)
        if found.outcome == "frozen":
            time.sleep(rng.random() * 0.3)
            self._resume()
        return str(found.outcome)

    def _resume(self) -> None:
        self._quietly(lambda: self.client.resume(self._world, "chaos"))

    @staticmethod
    def _quietly(call: Any) -> bool:
        """What is refused now is refused: an approval too late, an abort after the switch.

        Whether it was not.
        """
        try:
            call()
        except QmtlError as error:
            if error.status >= 500 and error.code != "E_UNAVAILABLE":
                raise
            return False
        return True

    # kills

    def _kill(self, rng: random.Random, stop: threading.Event, report: Report, limit: int) -> None:
        while sum(report.kills.values()) < limit and not stop.wait(1.0 + rng.random() * 4.0):
            victim = rng.choice(VICTIMS)
            if victim == "runner":
                number = rng.randrange(len(self._strategies))
                self._end_trader(number)
                self._start_trader(number, rng.randrange(10**9))
            else:
                self.machine.kill(victim)
                {
                    "worker": self.machine.start_worker,
                    "gateway": lambda: self.machine._start("gateway", self._gateway, {}),
                    "temporal": self.machine.start_temporal,
                }[victim]()
            report.kills[victim] += 1

    def _start_trader(self, number: int, seed: int) -> None:
        diary = self.machine.home / f"{self._world}.{number}.diary"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        arguments = [
            self.machine.url,
            self._token,
            self._world,
            self._strategies[number],
            str(seed * 10 + number),
            str(diary),
        ]
        with (self.machine.home / "trader.log").open("ab") as log:
            self._traders[number] = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.trader", *arguments], env=env, stdout=log, stderr=log
            )

    def _end_trader(self, number: int) -> None:
        trader = self._traders.pop(number)
        trader.kill()
        trader.wait()

    # what must hold

    def _rest(self, report: Report) -> None:
        """Until everything has ended; then what was written is read."""
        for number in list(self._traders):
            self._end_trader(number)
        database = self.machine.database()
        try:
            applies = SqlApplyRequests(database)
            try:
                wait_for(lambda: not applies.unfinished(), "end of all applies", 120)
                wait_for(lambda: self.client.fence(self._world).open_orders == 0, "end of all orders", 60)
            except AssertionError as error:
                report.violations.append(f"it did not come to rest: {error}")
            told = self._told()
            report.acknowledged, report.orders = len(told), self.client.fence(self._world).orders
            report.violations += order_violations(database, self._world, told)
        finally:
            database.close()
            self.client.close()
            self._ana.close()

    def _told(self) -> dict[str, str]:
        """What the traders were told, as far as they had written it down when they were killed."""
        found = {}
        for diary in self.machine.home.glob(f"{self._world}.*.diary"):
            for line in diary.read_text().splitlines():
                try:
                    order, said = json.loads(line)
                except ValueError:
                    continue  # the line at which it was killed
                found[order] = said
        return found
