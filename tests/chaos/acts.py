"""What an operator does in a chaos run while the strategies trade."""

import random
import time
import uuid
from collections.abc import Sequence

from activities.applies.requests import SqlApplyRequests
from activities.fence.store import SqlFenceStore
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.worlds import WorldUpdate
from tests.chaos.breaker import BreakerActs
from tests.chaos.routers import Routers
from tests.chaos.trader import UNANSWERED_S
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


class Operator(BreakerActs):
    """Applies one request after another, and now and then interferes. Every choice is of its `rng`."""

    def __init__(self, machine: Machine, world: OrderWorld, rng: random.Random) -> None:
        self._machine = machine
        super().__init__(world)
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

    def _let_requests_wait(self) -> None:
        """Leave everything alone for as long as a trader waits for an answer."""
        time.sleep(UNANSWERED_S + 2)

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
