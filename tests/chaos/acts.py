"""What an operator does in a chaos run while the strategies trade."""

import random
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from activities.applies.requests import SqlApplyRequests
from activities.fence.store import SqlFenceStore
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.worlds import CircuitBreaker, EdgeOverride, WorldUpdate
from tests.chaos.routers import Routers
from tests.chaos.world import TTL_S, OrderWorld, attempt
from tests.support.machine import Machine, wait_for

ACTS = (
    "halt",
    "halt_strategy",
    "no_live",
    "close_edge",
    "let_it_become_stale",
    "switch_off",
    "break_circuit",
    "lose_the_router",
)


class Operator:
    """Applies one request after another, and now and then interferes. Every choice is of its `rng`."""

    def __init__(self, machine: Machine, world: OrderWorld, rng: random.Random) -> None:
        self._machine = machine
        self._world = world
        self._client = world.client
        self._rng = rng
        self.routers = Routers(machine)

    def try_everything(self) -> None:
        """Each act in a world that is live, and from one to the next by way of dryrun.

        A freeze must find strategies there, as live ones are kept out by the closed edge as well.
        """
        self._world.carry_out(self._rng, run_id="to-dryrun", to="dryrun")
        for number, act in enumerate(ACTS):
            self._world.carry_out(self._rng, run_id=f"to-live-{number}", to="live")
            self._act(act)
            self._world.carry_out(self._rng, run_id=f"back-{number}", rollback_of=f"to-live-{number}")
        self._lose_the_worker_while_frozen()

    def try_acts(self, acts: Sequence[str]) -> None:
        """These acts in a world in paper trading."""
        self._world.carry_out(self._rng, run_id="to-dryrun", to="dryrun")
        for act in acts:
            self._act(act)
            self._world.await_trading()

    def episode(self, number: int) -> str:
        """Something that an operator does, mostly nothing, then an apply; return how that ended."""
        if self._rng.random() < 0.4:
            self._act(self._rng.choice(ACTS))
        return self._apply(f"run-{number}")

    def _act(self, act: str) -> None:
        getattr(self, f"_{act}")()

    def _halt(self) -> None:
        self._client.halt(self._world.name, "chaos")
        time.sleep(0.2 + self._rng.random() * 0.3)
        self._world.resume()

    def _halt_strategy(self) -> None:
        strategy = self._rng.choice(self._world.strategies)
        self._client.halt(self._world.name, "chaos", strategy)
        time.sleep(0.5 + self._rng.random() * 0.5)
        self._client.resume(self._world.name, "chaos", strategy)

    def _no_live(self) -> None:
        self._client.update_world(self._world.name, WorldUpdate(allow_live=False))
        time.sleep(0.3 + self._rng.random() * 0.5)
        self._client.update_world(self._world.name, WorldUpdate(allow_live=True), live=True)

    def _close_edge(self) -> None:
        attempt(
            lambda: self._client.override(
                self._world.name,
                EdgeOverride(src="domain:backtest", dst="domain:live", active=False, reason="chaos"),
            )
        )
        time.sleep(0.3 + self._rng.random() * 0.5)

    def _let_it_become_stale(self) -> None:
        self._world.stale.set()
        time.sleep(TTL_S + 1)
        self._world.stale.clear()

    def _switch_off(self) -> None:
        for policy in (self._world.closed_policy, self._world.policy):
            self._client.add_policy(self._world.name, policy)
            self._client.decide(self._world.name, uuid.uuid4().hex)
            time.sleep(0.3 + self._rng.random() * 0.3)

    def _break_circuit(self) -> None:
        self._client.update_world(
            self._world.name, WorldUpdate(circuit_breaker=CircuitBreaker(max_orders_per_minute=20))
        )
        time.sleep(1.0)
        self._client.update_world(self._world.name, WorldUpdate(circuit_breaker=CircuitBreaker()))
        self._world.resume()

    def _break_circuit_twice(self) -> None:
        """Break the circuit twice within a minute: after the resume, orders are counted anew."""
        self._await_second(0, 30)
        self._limit_orders(20)
        for _ in range(2):
            wait_for(self._is_halted, "halt by the circuit breaker")
            self._world.resume()
        self._limit_orders(None)
        self._world.resume()

    def _count_over_a_minute(self) -> None:
        """Let orders be counted at the end of a minute; in the next one, they are counted anew.

        The limit is half as much again as was counted, which only the orders of both minutes reach.
        """
        self._await_second(44, 48)
        before = self._accepted()
        self._limit_orders(10**6)
        self._await_second(56, 59)
        self._limit_orders(max((self._accepted() - before) * 3 // 2, 20))
        self._await_second(0, 20)
        ended = time.monotonic() + 8.0
        wait_for(lambda: self._is_halted() or time.monotonic() > ended, "orders of the new minute")
        self._limit_orders(None)
        self._world.resume()

    def _limit_orders(self, most: int | None) -> None:
        breaker = CircuitBreaker(max_orders_per_minute=most)
        self._client.update_world(self._world.name, WorldUpdate(circuit_breaker=breaker))

    def _is_halted(self) -> bool:
        return bool(self._client.fence(self._world.name).halted)

    def _accepted(self) -> int:
        return self._client.fence(self._world.name).orders.get("accepted", 0)

    @staticmethod
    def _await_second(first: int, last: int) -> None:
        """Wait until the clock shows one of these seconds of a minute."""
        wait_for(lambda: first <= datetime.now(UTC).second <= last, f"second {first} of a minute", 65)

    def _lose_the_router(self) -> None:
        self.routers.lose_all(self._world.await_trading)

    def _lose_the_worker_while_frozen(self) -> None:
        """A world is frozen for a tenth of a second before it drains, too short for orders under the new
        epoch to come: now it stays so until there is a worker again.
        """
        database = self._machine.database()  # past the Gateway: a request takes half as long as the freeze
        try:
            name = self._world.name
            worlds, applies = SqlFenceStore(database), SqlApplyRequests(database)
            for number in range(10):
                run_id = f"to-freeze-{number}"
                if not self._world.request_apply(self._rng, run_id=run_id, to="live"):
                    return  # what leaks here keeps strategies from coming so far
                wait_for(
                    lambda run_id=run_id: (
                        worlds.status(name).state != "open" or applies.find(name, run_id).outcome
                    ),
                    "freeze",
                )
                for worker in self._machine.all_of("worker"):
                    self._machine.kill(worker)
                caught = worlds.status(name).state == "frozen"
                if caught:
                    self._world.await_trading()
                for worker in self._machine.all_of("worker"):
                    self._machine.restart(worker)
                wait_for(lambda: worlds.status(name).state == "open", "unfreeze", 120)
                if caught:
                    return
                self._world.carry_out(self._rng, run_id=f"to-thaw-{number}", rollback_of=run_id)
        finally:
            database.close()

    def _apply(self, run_id: str) -> str:
        """An apply to its end; how it ended, or why it was refused."""
        world, rng = self._world, self._rng
        earlier = [item.run_id for item in self._client.applies(world.name, 5) if item.outcome == "completed"]
        if earlier and rng.random() < 0.3:
            wanted = {"run_id": run_id, "rollback_of": rng.choice(earlier)}
        else:
            left = rng.sample(world.strategies, rng.randint(1, len(world.strategies)))
            wanted = {
                "run_id": run_id,
                "to": rng.choice(("dryrun", "live")),
                "weights": {name: round(rng.random() / len(world.strategies), 3) for name in left},
            }
        try:
            found = self._client.apply(world.name, ApplyRequest.model_validate(wanted), live=True)
        except QmtlError as error:
            world.resume() if error.code == "E_WORLD_FROZEN" else None
            if error.code != "E_RECORDED":  # a Gateway starts it when Temporal is back
                return error.code
        what = rng.random()
        attempt(
            lambda: (
                world.ana.approve(world.name, run_id, ApprovalBody(), live=True)
                if what > 0.07
                else world.ana.reject(world.name, run_id, ApprovalBody())
            )
        )
        if what > 0.9:
            time.sleep(rng.random() * 0.2)
            attempt(lambda: self._client.abort(world.name, run_id, "chaos"))
        elif what > 0.85:
            attempt(lambda: self._client.update_world(world.name, WorldUpdate(allow_live=False)))
        found = wait_for(
            lambda: (
                status
                if (status := self._client.apply_status(world.name, run_id, wait_s=20)).outcome
                else None
            ),
            f"end of {run_id}",
            120,
        )
        if 0.85 < what <= 0.9:
            self._client.update_world(world.name, WorldUpdate(allow_live=True), live=True)
        if found.outcome == "frozen":
            time.sleep(rng.random() * 0.3)
            world.resume()
        return str(found.outcome)
