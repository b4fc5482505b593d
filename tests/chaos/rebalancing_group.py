"""Two worlds of a chaos run of rebalancings, and the people who rebalance them."""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from activities.applies.requests import SqlApplyRequests
from activities.fence.acceptance import OrderAcceptance
from activities.fence.order_log import SqlOrderLog
from activities.order_settings import OrdersSettings
from activities.storage.database import Database
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.targets import TargetVerdict
from qmtl_sdk.runtime.client import GatewayClient
from tests.chaos.rebalancing_kills import STEPS, Kills, Report, run_row, step_of
from tests.chaos.world import attempt
from tests.support.desk import Desk, policy
from tests.support.machine import Machine, wait_for
from tests.support.rebalance_runs import Runs
from tests.support.rebalancing_checker import Place

ACCOUNT = "exchange"
SYMBOLS = ("AAPL", "MSFT")
MARK = "100"

# The most that a strategy wants to hold of a symbol, in units at a weight of 1.
MOST = 40

# So small that the worlds of all episodes have no more than the whole.
SHARES = tuple(Decimal(number) / 2000 for number in range(4, 21, 2))

# Seconds until a run has ended, and until everything rests.
ENDS_S = 240.0
RESTS_S = 120.0

CAPITAL: dict[str, Any] = {"capital": {"amount": "10000"}, "instruments": {"lot": "1"}}


class Strategies:
    """The strategies of two worlds, as far as they set targets."""

    def __init__(self, database: Database, desks: Sequence[Desk]) -> None:
        self._database = database
        self._desks = desks
        self._wanted = dict[Place, int]()
        self._acceptance = OrderAcceptance(database, OrdersSettings(dryrun_account=ACCOUNT))

    def say(self, rng: random.Random, opposite: bool = False) -> None:
        """Let the strategies say what they want; `opposite`: those of the first world against each other."""
        for desk in self._desks:
            sign = 1
            for strategy in desk.strategies:
                for symbol in SYMBOLS:
                    value = rng.randint(MOST // 4, MOST) if opposite else rng.randint(-MOST, MOST)
                    self._set(desk, strategy, symbol, sign * value)
                sign = -sign

    def change_one(self, rng: random.Random) -> None:
        desk = rng.choice(self._desks)
        self._set(desk, rng.choice(desk.strategies), rng.choice(SYMBOLS), rng.randint(-MOST, MOST))

    def settle(self) -> dict[Place, Decimal]:
        """Set the last targets at rest until none orders anything; return what they come to by weights.

        The exchange rejects orders: what is missing then is ordered with the next bar.
        """
        wait_for(self._lacks_nothing, "targets that order nothing at rest", RESTS_S)
        weights = {
            (desk.world, item.strategy_id): Decimal(repr(item.weight))
            for desk in self._desks
            for item in desk.fence.activations(desk.world)
        }
        return {place: value * weights[place[:2]] for place, value in self._wanted.items()}

    def _lacks_nothing(self) -> bool:
        """Set all last targets; return whether nothing was missing of them, then rest."""
        set_again = [
            self._set(desk, strategy, symbol, self._wanted[desk.world, strategy, ACCOUNT, symbol])
            for desk in self._desks
            for strategy in desk.strategies
            for symbol in SYMBOLS
        ]
        self.rest()
        return all(set_again)

    def _set(self, desk: Desk, strategy: str, symbol: str, value: int) -> bool:
        """Set a target; return whether it was accepted, and nothing was missing of it."""
        self._wanted[desk.world, strategy, ACCOUNT, symbol] = value
        try:
            return self._publish(desk, strategy, symbol, value)
        except QmtlError:
            return False

    def _publish(self, desk: Desk, strategy: str, symbol: str, value: int) -> bool:
        session = desk.session(strategy)
        target = desk.target(
            session,
            desk.epoch,
            strategy_id=strategy,
            symbol=symbol,
            unit="units",
            value=Decimal(value),
        )
        (verdict,) = self._acceptance.publish([target], desk.caller)
        desk.sessions.end(session, "stopped", "ana")
        assert isinstance(verdict, TargetVerdict)
        return verdict.accepted and not verdict.ordered

    def rest(self) -> None:
        """Wait until no order of its worlds is open."""
        log = SqlOrderLog(self._database)
        for world in (desk.world for desk in self._desks):
            wait_for(lambda world=world: log.open_orders(world) == 0, f"rest of {world}", RESTS_S)  # type: ignore[misc]


class Group:
    """Two worlds with three strategies, and the people who rebalance them."""

    def __init__(self, machine: Machine, database: Database, name: str, seed: int) -> None:
        self._database = database
        self._name = name
        self._seed = seed
        self._client = machine.client(away_limit_s=60.0)
        self._ana = GatewayClient(machine.url, machine.token("ana"), away_limit_s=60.0)
        self._runs = Runs(database)
        found = policy(apply={"freeze_timeout_ms": 500, "drain_timeout_ms": 2000})
        self.desks = [
            Desk(database, f"{side}-{name}", strategies=count, found=found, **CAPITAL)
            for side, count in (("left", 2), ("right", 1))
        ]
        self.first = {self.desks[0].world: Decimal("0.006"), self.desks[1].world: Decimal("0.004")}
        for desk in self.desks:
            desk.decide(ttl=86_400)
            desk.apply("dryrun")
        self.strategies = Strategies(database, self.desks)
        self._runs.share(**{world: str(share) for world, share in self.first.items()})

    @property
    def worlds(self) -> list[str]:
        return [desk.world for desk in self.desks]

    def close(self) -> None:
        self._client.close()
        self._ana.close()

    # one run

    def run(self, number: int, kills: Kills | None, report: Report) -> None:
        """Carry out a run to its end, whatever is killed."""
        rng = random.Random(f"{self._seed} {self._name} {number}")
        run_id = f"{self._name}-{number}"
        if number == 0 or rng.random() < 0.3:
            self.strategies.say(rng, opposite=number == 0 or rng.random() < 0.5)
        if number == 0 or rng.random() < 0.85:  # otherwise the plan may be old when it is approved
            self.strategies.rest()
        worlds = self.worlds if rng.random() < 0.7 else [rng.choice(self.worlds)]
        shares = {
            world: str(rng.choice((*SHARES, Decimal(0)) if rng.random() < 0.1 else SHARES))
            for world in worlds
        }
        limit_s = rng.choice((3.0, 30.0, 120.0))
        self._request(run_id, shares, limit_s)
        with ThreadPoolExecutor(4) as others:
            doing = []
            if kills is None or rng.random() < 0.5:
                pause, world = rng.random() * 1.5, rng.choice(worlds)
                doing.append(others.submit(self._apply, run_id, pause, world, report))
            for _ in range(rng.choice((0, 0, 1, 3))):
                pause = rng.random() * 1.5
                doing.append(
                    others.submit(self._later, pause, self.strategies.change_one, random.Random(rng.random()))
                )
            if kills is not None:
                pair, pauses = kills.choose(rng), (rng.random() * 0.05, rng.random() * 0.4)
                doing.append(others.submit(self._kill_at, run_id, kills, pair, pauses))
            self._decide(run_id, rng, kills is None)
            wait_for(lambda: run_row(self._database, run_id).ended_at, f"end of {run_id}", ENDS_S)
            for item in doing:
                item.result()
        report.outcomes[run_row(self._database, run_id).outcome] += 1
        report.runs += 1

    def _request(self, run_id: str, shares: dict[str, str], limit_s: float) -> None:
        """Request a run until it is stored: positions may change while it is planned."""
        until = time.monotonic() + ENDS_S
        while not self._is_stored(run_id):
            marked = [{**item, "mark": MARK} for item in self._runs.positions(sorted(shares))]
            own = {"allocations_etag": "", "positions": marked}  # other groups change shares all the time
            asked = self._runs.asked(run_id, shares, request=own, time_limit_s=limit_s)
            try:
                self._client.apply_rebalancing(asked, live=True)
            except QmtlError as error:
                known = ("E_ETAG", "E_UNAVAILABLE", "E_RECORDED", "E_RUN_ID_REUSED")
                if error.code not in known or time.monotonic() > until:
                    raise

    def _is_stored(self, run_id: str) -> bool:
        query = "SELECT count(*) FROM rebalancing WHERE run_id = :run"
        with self._database.read() as session:
            return bool(session.connection().execute(text(query), {"run": run_id}).scalar_one())

    def _decide(self, run_id: str, rng: random.Random, surely: bool) -> None:
        """Approve, reject or abort a run; perhaps abort it after its approval."""
        luck = 1.0 if surely else rng.random()
        if luck > 0.1 and not surely:
            time.sleep(rng.random() * 0.6)
        if luck < 0.07:
            self._repeat(lambda: self._ana.reject_rebalancing(run_id, ApprovalBody()))
            return
        if luck < 0.14:
            self._repeat(lambda: self._client.abort_rebalancing(run_id, "chaos"))
            return
        self._repeat(lambda: self._ana.approve_rebalancing(run_id, ApprovalBody(), live=True))
        if luck < 0.3:
            time.sleep(rng.random() * 2)
            self._repeat(lambda: self._client.abort_rebalancing(run_id, "chaos"))

    @staticmethod
    def _repeat(call: Callable[[], object]) -> None:
        """Make a call until it was answered by a Gateway that lives."""
        until = time.monotonic() + ENDS_S
        while True:
            try:
                call()
            except QmtlError as error:
                if error.code == "E_UNAVAILABLE" and time.monotonic() < until:
                    continue
                if error.status >= 500 and error.code != "E_RECORDED":
                    raise
            return

    def _later(self, pause_s: float, act: Callable[[random.Random], None], rng: random.Random) -> None:
        time.sleep(pause_s)
        act(rng)

    def _apply(self, run_id: str, pause_s: float, world: str, report: Report) -> None:
        """Let an apply give the strategies of a world other weights; one that is refused is let be."""
        time.sleep(pause_s)
        rng = random.Random(f"{run_id} apply")
        desk = next(desk for desk in self.desks if desk.world == world)
        name = f"apply-{run_id}"
        weights = {strategy: round(0.2 + rng.random() / 4, 2) for strategy in desk.strategies}
        wanted = ApplyRequest.model_validate({"run_id": name, "to": "dryrun", "weights": weights})
        requested = attempt(lambda: self._client.apply(world, wanted, live=True))
        attempt(lambda: self._ana.approve(world, name, ApprovalBody(), live=True))
        try:
            found = wait_for(
                lambda: SqlApplyRequests(self._database).find(world, name).outcome, f"end of {name}", ENDS_S
            )
        except QmtlError as error:
            report.applies[error.code if not requested else "unknown"] += 1
            return
        report.applies[str(found)] += 1
        if found == "frozen":
            self._repeat(lambda: self._client.resume(world, "chaos"))

    def _kill_at(self, run_id: str, kills: Kills, pair: tuple[str, str], pauses: tuple[float, float]) -> None:
        """Kill a process when the run is at a step, or past it; if it ends first, nothing is killed."""
        found = ""
        while (now := step_of(self._database, run_id)) != "ended":
            if STEPS.index(now) >= STEPS.index(pair[1]):
                time.sleep(pauses[0] if now in ("approval", "reductions") else 0.0)
                found = step_of(self._database, run_id)
                break
            time.sleep(0.004)
        kills.hit(pair, found, pauses[1])
