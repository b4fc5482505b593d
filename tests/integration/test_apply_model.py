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
from activities.storage.audit import SqlAudit
from activities.storage.opening import open_database
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.decisions import WHOLE_WORLD
from tests.support.desk import Desk

STEPS = ("freeze", "drain", "switch", "restore", "unfreeze")
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
        SqlAudit(self.database).verify(self.desk.world)
        self.database.close()
        self._folder.cleanup()

    # what is asked for

    @rule(to=st.sampled_from(["dryrun", "live"]), weight=st.sampled_from([0.1, 0.2, 0.3]))
    def request(self, to: str, weight: float) -> None:
        model, mode = self.model, {"dryrun": "paper", "live": "live"}[to]
        self.count += 1
        run, plan = f"run-{self.count}", {}
        for name, stand in model.stands.items():
            if not model.decided:
                after = Stand(False, "validate", 0.0)
            elif RANK[stand.mode] > RANK[mode] or (mode == "live" and stand.mode == "validate"):
                after = stand
            else:
                after = Stand(True, mode, weight)
            if after != stand:
                plan[name] = after
        edge_after = model.edge or any(stand.mode == "live" for stand in plan.values())
        expected = (
            "E_APPLY_RUNNING"
            if model.running
            else "E_WORLD_FROZEN"
            if model.gate != "open"
            else ""
            if plan
            else "E_APPLY_EMPTY"
        )
        weights = dict.fromkeys(self.desk.strategies, weight)
        if self._refused(lambda: self.desk.request(to, run, weights=weights), expected):
            return
        model.running, model.plan, model.edge_after = run, plan, edge_after
        model.made_from, model.done[run] = self._state(), set()

    @rule(step=st.sampled_from(STEPS))
    @precondition(lambda self: bool(self.model.running))
    def step(self, step: str) -> None:
        """The next step of an apply, or one out of its order."""
        model, run = self.model, self.model.running
        again = step in model.done[run]
        expected = "" if again else self._may(step)
        if self._refused(lambda: getattr(self.desk.steps, step)(self.desk.world, run), expected) or again:
            return
        model.done[run].add(step)
        getattr(self, f"_did_{step}")()

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
        model = self.model
        stuck = model.gate != "open" and not model.running
        expected = (
            "" if model.halted or stuck else "E_APPLY_RUNNING" if model.gate != "open" else "E_WORLD_OPEN"
        )
        if self._refused(lambda: self.desk.steps.resume(self.desk.world, "olga", ""), expected):
            return
        model.halted, model.epoch = False, model.epoch + 1
        if stuck:
            model.gate, model.holder = "open", ""
            self._follow()

    @rule(active=st.booleans())
    def decide(self, active: bool) -> None:
        self.desk.decide(active=active)
        self.model.decided = active
        if self.model.gate == "open":
            self._follow()

    # what should have happened

    def _may(self, step: str) -> str:
        model = self.model
        if step == "freeze":
            return (
                "E_WORLD_FROZEN"
                if model.gate != "open"
                else "E_ETAG"
                if self._state() != model.made_from
                else ""
            )
        if model.holder != model.running:
            return "E_WORLD_FROZEN"
        return (
            "E_ETAG"
            if step == "switch" and {**self._state(), "edge": model.edge_before} != model.made_from
            else ""
        )

    def _did_freeze(self) -> None:
        model = self.model
        model.gate, model.holder, model.epoch = "frozen", model.running, model.epoch + 1
        model.before, model.edge_before = dict(model.stands), model.edge
        model.edge = False

    def _did_drain(self) -> None:
        self.model.gate = "draining"

    def _did_switch(self) -> None:
        self.model.stands |= self.model.plan
        self.model.edge = self.model.edge_after

    def _did_restore(self) -> None:
        self.model.stands, self.model.edge = dict(self.model.before), self.model.edge_before

    def _did_unfreeze(self) -> None:
        model = self.model
        if "switch" not in model.done[model.running]:
            model.stands, model.edge = dict(model.before), model.edge_before
        model.gate, model.holder, model.epoch = "open", "", model.epoch + 1
        self._follow()

    def _follow(self) -> None:
        """What a decision changes by itself.

        It switches off, and what it switches on again begins at the beginning.
        """
        for name, stand in self.model.stands.items():
            if not self.model.decided:
                self.model.stands[name] = Stand(False, "validate", 0.0)
            elif not stand.active:
                self.model.stands[name] = Stand()
            elif stand.mode == "validate":
                self.model.stands[name] = replace(stand, weight=0.5)

    def _state(self) -> dict[str, Any]:
        return {
            "stands": dict(self.model.stands),
            "edge": self.model.edge,
            "switched": sum("switch" in done for done in self.model.done.values()) > 0,
        }

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
        gate, model = self.desk.gate(), self.model
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
                [self.desk.order(self.sessions[domain], model.epoch, execution_domain=domain)]
            )[0]
            stand = model.stands[name]
            allowed = (
                model.gate == "open"
                and not model.halted
                and stand.active
                and stand.mode == mode
                and (mode != "live" or model.edge)
            )
            assert verdict.accepted is allowed, verdict


Applies.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestApplies = Applies.TestCase
