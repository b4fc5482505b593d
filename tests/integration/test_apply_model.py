"""Activation and apply against a small reference model.

Whatever is asked for, in whatever order and however often, the store does what the model does.
"""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from activities.fence.acceptance import OrderAcceptance
from activities.storage.opening import open_database
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.decisions import WHOLE_WORLD
from tests.support.desk import Desk
from tests.support.trail import audit_trail

STEPS = ("freeze", "drain", "switch", "restore", "unfreeze")
FORWARD = ("freeze", "drain", "switch", "unfreeze")
RANK = {"validate": 0, "paper": 1, "live": 2}


@dataclass(frozen=True)
class Stand:
    active: bool = True
    mode: str = "validate"
    weight: float = 0.5


@dataclass
class Model:
    """What the store should be. `plan`: what the apply under way will do; `before`: what it found."""

    stands: dict[str, Stand]
    gate: str = "open"
    holder: str = ""
    halted: bool = False
    epoch: int = 1
    running: str = ""
    plan: dict[str, Stand] = field(default_factory=dict)
    made_from: Any = None
    before: dict[str, Stand] = field(default_factory=dict)
    done: dict[str, set[str]] = field(default_factory=dict)
    decided: bool = True
    edge: bool = False
    edge_after: bool = False
    edge_before: bool = False

    def plan_for(self, to: str, weight: float) -> dict[str, Stand]:
        """What a requested apply will do; without the strategies that it leaves as they are."""
        mode = {"dryrun": "paper", "live": "live"}[to]
        plan = {}
        for name, stand in self.stands.items():
            if not self.decided:
                after = Stand(False, "validate", 0.0)
            elif RANK[stand.mode] > RANK[mode] or (mode == "live" and stand.mode == "validate"):
                after = stand
            else:
                after = Stand(True, mode, weight)
            if after != stand:
                plan[name] = after
        return plan

    def request_error(self, plan: dict[str, Stand]) -> str:
        """The code with which a request is refused; empty where it is accepted."""
        if self.running:
            return "E_APPLY_RUNNING"
        if self.gate != "open":
            return "E_WORLD_FROZEN"
        return "" if plan else "E_APPLY_EMPTY"

    def request(self, run: str, plan: dict[str, Stand]) -> None:
        self.running = run
        self.plan = plan
        self.edge_after = self.edge or any(stand.mode == "live" for stand in plan.values())
        self.made_from = self.state()
        self.done[run] = set()

    def step_error(self, step: str) -> str:
        """The code with which a step is refused that was not done yet; empty where it is done."""
        if step == "freeze":
            if self.gate != "open":
                return "E_WORLD_FROZEN"
            return "E_ETAG" if self.state() != self.made_from else ""
        if step == "switch" and self.went_back:
            return "E_APPLY_RESTORED"
        if self.holder != self.running:
            return "E_WORLD_FROZEN"
        changed = {**self.state(), "edge": self.edge_before} != self.made_from
        return "E_ETAG" if step == "switch" and changed else ""

    def freeze(self) -> None:
        self.gate, self.holder, self.epoch = "frozen", self.running, self.epoch + 1
        self.before, self.edge_before = dict(self.stands), self.edge
        self.edge = False

    def drain(self) -> None:
        self.gate = "draining"

    def switch(self) -> None:
        self.stands |= self.plan
        self.edge = self.edge_after

    def restore(self) -> None:
        self.stands, self.edge = dict(self.before), self.edge_before

    def unfreeze(self) -> None:
        if "switch" not in self.done[self.running]:
            self.restore()
        self.epoch += 1
        self.open()

    @property
    def went_back(self) -> bool:
        """Whether the apply under way has restored the state before it, so that it can only end."""
        done = self.done[self.running]
        return "switch" not in done and bool(done & {"restore", "unfreeze"})

    @property
    def stuck(self) -> bool:
        """Whether the world stayed frozen after its apply had ended."""
        return self.gate != "open" and not self.running

    def resume_error(self) -> str:
        """The code with which a resume is refused; empty where it is done."""
        if self.halted or self.stuck:
            return ""
        return "E_APPLY_RUNNING" if self.gate != "open" else "E_WORLD_OPEN"

    def resume(self) -> None:
        stuck = self.stuck
        self.halted, self.epoch = False, self.epoch + 1
        if stuck:
            self.open()

    def open(self) -> None:
        self.gate, self.holder = "open", ""
        self.follow()

    def follow(self) -> None:
        """Change what a decision changes by itself.

        It switches off, and what it switches on again begins at the beginning.
        """
        for name, stand in self.stands.items():
            if not self.decided:
                self.stands[name] = Stand(False, "validate", 0.0)
            elif not stand.active:
                self.stands[name] = Stand()
            elif stand.mode == "validate":
                self.stands[name] = replace(stand, weight=0.5)

    def state(self) -> dict[str, Any]:
        return {
            "stands": dict(self.stands),
            "edge": self.edge,
            "switched": sum("switch" in done for done in self.done.values()) > 0,
        }

    def allows_orders(self, stand: Stand, mode: str) -> bool:
        """Whether a strategy's orders pass in the domain of `mode`."""
        return (
            self.gate == "open"
            and not self.halted
            and stand.active
            and stand.mode == mode
            and (mode != "live" or self.edge)
        )


class Applies(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.database = open_database(f"sqlite:///{Path(self._folder.name) / 'qmtl.db'}")
        self.desk = Desk(self.database, strategies=2)
        self.orders = OrderAcceptance(self.database)
        self.model = Model({name: Stand() for name in self.desk.strategies})
        self.count = 0
        self.sessions = {domain: self.desk.session(domain=domain) for domain in ("dryrun", "live")}

    def teardown(self) -> None:
        audit_trail(self.database).verify(self.desk.world)
        self.database.close()
        self._folder.cleanup()

    # what is asked for

    @rule(to=st.sampled_from(["dryrun", "live"]), weight=st.sampled_from([0.1, 0.2, 0.3]))
    def request(self, to: str, weight: float) -> None:
        self.count += 1
        run = f"run-{self.count}"
        plan = self.model.plan_for(to, weight)
        weights = dict.fromkeys(self.desk.strategies, weight)
        expected = self.model.request_error(plan)
        if self._refused(lambda: self.desk.request(to, run, weights=weights), expected):
            return
        self.desk.approve(run)
        self.model.request(run, plan)

    @rule(step=st.sampled_from(STEPS))
    @precondition(lambda self: bool(self.model.running))
    def step(self, step: str) -> None:
        """The next step of an apply, or one out of its order."""
        model, run = self.model, self.model.running
        again = step in model.done[run]
        expected = "" if again else model.step_error(step)
        if self._refused(lambda: getattr(self.desk.steps, step)(self.desk.world, run), expected) or again:
            return
        model.done[run].add(step)
        getattr(model, step)()

    @rule(back=st.sampled_from([(), ("freeze", "restore", "switch"), ("freeze", "unfreeze", "switch")]))
    @precondition(lambda self: bool(self.model.running))
    def start_over(self, back: tuple[str, ...]) -> None:
        """The workflow's run is lost, perhaps on its way `back`. Another one repeats the steps to the end."""
        model, run = self.model, self.model.running
        for step in back:
            self.step(step)
        for step in () if model.went_back else FORWARD:
            self.step(step)
            if step not in model.done[run]:
                break
        if model.holder != run:
            self.conclude()
            return
        self.step("restore")
        self.leave_frozen()

    @rule(step=st.sampled_from(STEPS))
    @precondition(lambda self: any(run != self.model.running for run in self.model.done))
    def a_step_of_an_apply_that_has_ended(self, step: str) -> None:
        """Trap 17: a step that is repeated after its apply has ended answers as it did, and does nothing."""
        run = next(run for run in self.model.done if run != self.model.running)
        self._refused(
            lambda: getattr(self.desk.steps, step)(self.desk.world, run),
            "" if step in self.model.done[run] else "E_APPLY_ENDED",
        )

    @rule()
    @precondition(lambda self: bool(self.model.running) and self.model.holder != self.model.running)
    def conclude(self) -> None:
        self.desk.steps.conclude(
            self.desk.world,
            self.model.running,
            "completed" if "switch" in self.model.done[self.model.running] else "rolled_back",
            "",
        )
        self.model.running = ""

    @rule()
    @precondition(
        lambda self: (
            bool(self.model.running)
            and self.model.holder == self.model.running
            and "restore" in self.model.done[self.model.running]
        )
    )
    def leave_frozen(self) -> None:
        self.desk.steps.conclude(self.desk.world, self.model.running, "frozen", "the switch was refused")
        self.model.running = ""

    @rule()
    def halt(self) -> None:
        assert self.desk.fence.halt(self.desk.world, "olga", "") is not self.model.halted
        if not self.model.halted:
            self.model.halted, self.model.epoch = True, self.model.epoch + 1

    @rule()
    def resume(self) -> None:
        expected = self.model.resume_error()
        if self._refused(lambda: self.desk.steps.resume(self.desk.world, "olga", ""), expected):
            return
        self.model.resume()

    @rule(active=st.booleans())
    def decide(self, active: bool) -> None:
        self.desk.decide(active=active)
        self.model.decided = active
        if self.model.gate == "open":
            self.model.follow()

    def _refused(self, call: Any, expected: str) -> bool:
        """Whether the call was refused, with the code that was expected."""
        code = ""
        try:
            call()
        except QmtlError as error:
            code = error.code
        assert code == expected, f"{code or 'done'}, expected {expected or 'nothing'}"
        return bool(code)

    # what must always hold

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        gate, model = self.desk.fence_row(), self.model
        assert (gate.state, gate.holder, bool(gate.halted), gate.epoch, gate.live_edge) == (
            model.gate,
            model.holder,
            model.halted,
            model.epoch,
            model.edge,
        )
        there = {
            item.strategy_id: Stand(item.active, item.effective_mode or "", item.weight)
            for item in self.desk.fence.activations(self.desk.world)
        }
        assert there == model.stands
        assert WHOLE_WORLD not in there

    @invariant()
    def orders_pass_where_the_model_lets_them(self) -> None:
        model, name = self.model, self.desk.strategies[0]
        for domain, mode in (("dryrun", "paper"), ("live", "live")):
            verdict = self.orders.publish(
                [self.desk.order(self.sessions[domain], model.epoch, execution_domain=domain)],
                self.desk.caller,
            )[0]
            allowed = model.allows_orders(model.stands[name], mode)
            assert verdict.accepted is allowed, verdict


Applies.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestApplies = Applies.TestCase
