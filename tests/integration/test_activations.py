"""A decision about many strategies changes them together: orders and halts wait while it does."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import Session, col, select

from activities.decisions import sql as decisions
from activities.decisions.candidate import HysteresisState
from activities.decisions.store import DecisionInputs
from activities.fence import activations
from activities.fence.acceptance import OrderAcceptance
from activities.fence.activations import (
    PreparedActivations,
    decided_activations,
    entry_hashes,
    stored_activations,
)
from activities.fence.state import locked_fence
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.storage.database import Database
from activities.storage.tables import OutboxRow
from activities.storage.transactions import RecordedChange
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.orders import OrderVerdict
from qmtl_sdk.contracts.topic_state import combined_hash, entry_hash, state_hash
from tests.support.desk import Desk
from tests.support.statements import statements
from tests.support.trail import audit_trail

FEW = 2
MANY = 12

CHANGED = re.compile(r"\b(activation|audit|audit_head|outbox|hysteresis)\b")
"""Tables of which a change writes a row for each strategy."""


def switched_off(desk: Desk) -> None:
    desk.decide(active=False)


def promoted(desk: Desk) -> None:
    run = desk.request("dryrun")
    desk.freeze(run)
    desk.steps.drain(desk.world, run)
    desk.steps.switch(desk.world, run)


@pytest.mark.parametrize("change", [switched_off, promoted], ids=["decision", "apply"])
def test_the_statements_do_not_grow_with_the_strategies(
    database: Database, change: Callable[[Desk], None]
) -> None:
    """A thousand strategies held the fence for many seconds: each had statements and a hash of its own."""
    counts: list[int] = []
    for world, number in (("few", FEW), ("many", MANY), ("more", 2 * MANY)):
        desk = Desk(database, world, strategies=number)
        with statements() as found:
            change(desk)
        counts.append(sum(bool(CHANGED.search(statement)) for statement, _ in found))
    assert counts[0] <= counts[1] == counts[2]


def test_each_event_has_the_hash_and_the_sequence_after_it(database: Database) -> None:
    desk = Desk(database, "w", strategies=FEW)
    desk.apply("dryrun")
    with database.read() as session:
        rows = session.exec(
            select(OutboxRow).where(OutboxRow.type == "activation_updated").order_by(col(OutboxRow.seq))
        ).all()
    events: dict[str, Any] = {}
    for number, row in enumerate(rows, 1):
        data = json.loads(row.data)
        events[row.subject] = data
        assert (data["sequence"], data["state_hash"]) == (number, state_hash(events))
    assert desk.fence.activation_hash("w") == (len(rows), state_hash(events))
    audit_trail(database).verify("w")


def test_changes_that_are_recorded_together_stand_in_their_chains_in_order(database: Database) -> None:
    changes = [RecordedChange("test", world, str(n)) for n, world in enumerate(("b", "a", "b", "a", "c"))]
    for _ in range(2):
        with database.write("test") as tx:
            tx.record_all(changes)
            tx.record_all([])
    audit = audit_trail(database)
    assert [audit.verify(world)[0] for world in ("a", "b", "c")] == [4, 4, 2]
    assert [item.subject for item in audit.page("b", 0, 10).entries] == ["0", "2", "0", "2"]
    with database.read() as session:
        found = list(session.exec(select(OutboxRow.subject).order_by(col(OutboxRow.seq))))
    assert found[-10:] == ["0", "1", "2", "3", "4"] * 2
    long = RecordedChange("test", "a", "x" * 2000)
    with pytest.raises(QmtlError, match="E_BODY_INVALID"), database.write("test") as tx:
        tx.record_all([changes[0], long])
    assert audit.verify("b")[0] == 4


def test_hysteresis_states_are_written_together(database: Database) -> None:
    desk = Desk(database, "w")
    envelope = desk.decide()
    counts: list[int] = []
    for number in (FEW, MANY):
        state = HysteresisState(active=True, since=envelope.decided_at)
        inputs = DecisionInputs(after={f"strategy:{n}": state for n in range(number)})
        with statements() as found:
            desk.decisions.save_decision((f"request-{number}",), envelope, "judge", inputs=inputs)
        counts.append(len(found))
        assert len(desk.decisions.hysteresis_states("w")) == number
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)  # SQLite has one writer
def test_a_halt_between_the_decision_and_the_fence_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The activations that a decision changes are found before the fence is locked."""
    desk = Desk(database, "w", strategies=2)
    first, _ = desk.strategies

    def halted_first(tx: Any, world_id: str) -> Any:
        SqlStrategyHalts(database).halt(world_id, first, "olga", "a look")
        return locked_fence(tx, world_id)

    with monkeypatch.context() as patched:
        patched.setattr(decisions, "locked_fence", halted_first)
        desk.decide(weight=0.25)
    halted, other = desk.fence.activations("w")
    assert (halted.halted, other.halted) == (True, False)
    assert (halted.weight, other.weight) == (0.25, 0.25)
    with database.read() as session:
        stored = stored_activations(session, "w")
    assert desk.fence.activation_hash("w")[1] == combined_hash(entry_hashes(stored.values()))
    assert max(item.sequence for item in stored.values()) == desk.fence.activation_hash("w")[0]


def test_orders_pass_while_a_decision_is_prepared(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision about a thousand strategies held the fence, and SQLite's only writer, for this."""
    desks = [Desk(database, "w", strategies=2), Desk(database, "other")]
    sessions = []
    for desk in desks:
        desk.apply("dryrun")
        sessions.append((desk, desk.session(), desk.epoch))
    acceptance = OrderAcceptance(database)
    verdicts: list[OrderVerdict] = []

    def with_orders(data: dict[str, Any]) -> str:
        for desk, session, epoch in sessions:
            verdicts.extend(acceptance.submit([desk.order(session, epoch)], desk.caller).result(5))
        return entry_hash(data)

    monkeypatch.setattr(activations, "entry_hash", with_orders)
    desks[0].decide(active=False)
    assert {(item.active, item.effective_mode) for item in desks[0].fence.activations("w")} == {
        (False, "validate")
    }
    assert len(verdicts) >= 2 * len(desks[0].strategies)
    assert all(verdict.accepted for verdict in verdicts)


@pytest.mark.parametrize("halted", [True, False])
def test_a_change_while_a_decision_is_prepared_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch, halted: bool
) -> None:
    """An apply ends meanwhile, and a strategy is halted."""
    desk = Desk(database, "w", strategies=2)
    run = desk.request("dryrun")
    desk.freeze(run)
    desk.steps.drain("w", run)
    seen: list[PreparedActivations] = []

    def then_changed(session: Session, envelope: DecisionEnvelope, run_id: str) -> PreparedActivations:
        prepared = decided_activations(session, envelope, run_id)
        if not seen:
            if halted:
                SqlStrategyHalts(database).halt("w", desk.strategies[0], "olga", "a look")
            desk.steps.switch("w", run)
            desk.steps.unfreeze("w", run)
        seen.append(prepared)
        return prepared

    with monkeypatch.context() as patched:
        patched.setattr(decisions, "decided_activations", then_changed)
        desk.decide(weight=0.25)
    first, second = desk.fence.activations("w")
    assert (first.halted, second.halted) == (halted, False)
    assert {(item.effective_mode, item.weight) for item in (first, second)} == {("paper", 0.5)}
    with database.read() as session:
        stored = stored_activations(session, "w")
        rows = session.exec(select(OutboxRow).where(OutboxRow.type == "activation_updated"))
        numbers = [json.loads(row.data)["sequence"] for row in rows]
    assert sorted(numbers) == list(range(1, len(numbers) + 1)), "each change has a sequence of its own"
    assert desk.fence.activation_hash("w") == (
        len(numbers),
        combined_hash(entry_hashes(stored.values())),
    )


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)  # SQLite has one writer
def test_what_changed_while_a_decision_was_prepared_is_found_before_the_fence_is_locked(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(database, "w", strategies=2)
    desk.apply("dryrun")
    order = desk.order(desk.session(), desk.epoch)
    acceptance = OrderAcceptance(database)
    verdicts: list[OrderVerdict] = []

    def halted_then_ordered(session: Session, envelope: DecisionEnvelope, run_id: str) -> PreparedActivations:
        if desk.fence.activations("w")[1].halted:
            verdicts.extend(acceptance.submit([order], desk.caller).result(5))
            return decided_activations(session, envelope, run_id)
        prepared = decided_activations(session, envelope, run_id)
        SqlStrategyHalts(database).halt("w", desk.strategies[1], "olga", "a look")
        return prepared

    for module in (decisions, activations):
        monkeypatch.setattr(module, "decided_activations", halted_then_ordered)
    desk.decide(weight=0.25)
    assert [verdict.accepted for verdict in verdicts] == [True]
