"""A halt of one strategy on a real database: nothing but a resume lifts it, and nothing else waits for it."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlmodel import col, select

from activities.fence.acceptance import OrderAcceptance
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.storage.database import Database
from activities.storage.tables import OutboxRow
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.refusals import Refusal
from tests.support.admissions import begin_run, run_of
from tests.support.desk import Desk, policy
from tests.support.trail import audit_trail


@pytest.fixture
def desk(database: Database) -> Desk:
    """In paper trading, with two strategies."""
    found = Desk(database, strategies=2)
    found.apply("dryrun")
    return found


@pytest.fixture
def halts(desk: Desk) -> SqlStrategyHalts:
    return SqlStrategyHalts(desk.database)


def verdicts(desk: Desk) -> list[Refusal | None]:
    """What the fence answers each strategy."""
    orders = [desk.order(desk.session(name), desk.epoch, strategy_id=name) for name in desk.strategies]
    return [item.reason for item in OrderAcceptance(desk.database).publish(orders, desk.caller)]


def shown(desk: Desk) -> list[bool]:
    return [item.halted for item in desk.fence.activations(desk.world)]


HALTED = Refusal.STRATEGY_HALTED


def test_one_strategy_is_halted_and_the_others_go_on(desk: Desk, halts: SqlStrategyHalts) -> None:
    epoch = desk.epoch
    first = halts.halt(desk.world, "w0", "olga", "odd orders")
    assert (first.strategy_id, first.reason, first.halted_by) == (desk.strategies[0], "odd orders", "olga")
    assert halts.halt(desk.world, desk.strategies[0], "ana", "again") == first, "the first one stands"
    assert (verdicts(desk), desk.epoch) == ([HALTED, None], epoch)
    assert shown(desk) == [True, False]
    assert desk.fence.status(desk.world).strategy_halts == (first,)
    assert halts.resume(desk.world, "strategy:w0", "olga", "looked at") == first
    assert verdicts(desk) == [None, None]
    assert shown(desk) == [False, False]
    with pytest.raises(QmtlError, match=r"w0 is not halted in w.*E_NOT_HALTED"):
        halts.resume(desk.world, "w0", "olga", "")
    trail = [
        (item.action, item.actor, item.subject, item.after)
        for item in audit_trail(desk.database).page(desk.world, 0, 1000, verify=True).entries
        if item.action.startswith("strategy.")
    ]
    subject = desk.strategies[0]
    halted = {"halted": True, "reason": "odd orders", "cancelled": 0, "requested": 0}
    assert trail == [
        ("strategy.halted", "olga", subject, halted),
        ("strategy.resumed", "olga", subject, {"halted": False, "reason": "looked at"}),
    ]
    assert [kind for kind in desk.logged() if kind in ("halt", "resume")] == ["halt", "resume"]


def test_the_halt_is_published_to_the_gate_at_once(desk: Desk, halts: SqlStrategyHalts) -> None:
    halts.halt(desk.world, "w0", "olga", "")
    with desk.database.read() as session:
        newest = session.exec(select(OutboxRow).order_by(col(OutboxRow.seq))).all()[-1]
    data = json.loads(newest.data)
    assert (newest.type, newest.subject, data["halted"], data["active"]) == (
        "activation_updated",
        desk.strategies[0],
        True,
        True,
    )
    assert (data["sequence"], data["state_hash"]) == desk.fence.activation_hash(desk.world)


def new_policy(desk: Desk) -> None:
    desk.rules.add_policy(desk.world, policy(), "olga")
    desk.decide()


def switched_off_and_on(desk: Desk) -> None:
    desk.decide(active=False)
    desk.decide()
    desk.apply("dryrun")


def rolled_back(desk: Desk) -> None:
    run = desk.apply("dryrun", weights=dict.fromkeys(desk.strategies, 0.1))
    desk.apply(rollback_of=run)


def halted_and_resumed(desk: Desk) -> None:
    desk.fence.halt(desk.world, "olga", "")
    desk.steps.resume(desk.world, "olga", "")


@pytest.mark.parametrize(
    "happens",
    [
        lambda desk: desk.decide(),
        switched_off_and_on,
        new_policy,
        lambda desk: desk.apply("dryrun", weights=dict.fromkeys(desk.strategies, 0.2)),
        rolled_back,
        halted_and_resumed,
    ],
)
def test_nothing_else_lifts_it(
    desk: Desk, halts: SqlStrategyHalts, happens: Callable[[Desk], object]
) -> None:
    halts.halt(desk.world, "w0", "olga", "")
    happens(desk)
    assert verdicts(desk) == [HALTED, None]
    assert shown(desk) == [True, False]
    with pytest.raises(QmtlError, match="resume one of its halted strategies with -s STRATEGY: w0"):
        desk.steps.resume(desk.world, "olga", "")


def test_halt_and_resume_work_while_an_apply_holds_the_world(desk: Desk, halts: SqlStrategyHalts) -> None:
    run = desk.request("dryrun", weights=dict.fromkeys(desk.strategies, 0.2))
    desk.freeze(run)
    halts.halt(desk.world, "w0", "olga", "")
    halts.halt(desk.world, "w1", "olga", "")
    desk.steps.drain(desk.world, run)
    halts.resume(desk.world, "w1", "olga", "")
    desk.steps.switch(desk.world, run)
    desk.steps.unfreeze(desk.world, run)
    desk.steps.conclude(desk.world, run, "completed", "")
    assert verdicts(desk) == [HALTED, None]
    halts.resume(desk.world, "w0", "olga", "")
    assert verdicts(desk) == [None, None]


def test_a_strategy_that_was_never_judged_can_be_halted_and_stays_so(
    desk: Desk, halts: SqlStrategyHalts
) -> None:
    new = "strategy:new"
    desk.evidence(new)
    halts.halt(desk.world, "new", "olga", "")
    desk.strategies.append(new)
    desk.decide()
    desk.apply("dryrun")
    assert verdicts(desk) == [None, None, HALTED]
    halts.resume(desk.world, "new", "olga", "")
    assert verdicts(desk) == [None, None, None]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("w00", "'w00' is no strategy of w (did you mean 'w0'?)"),
        ("strategy", "'strategy' names 2 strategies of w: w0 strategy:w0, w1 strategy:w1 [E_STRATEGY"),
        ("x" * 128, "is no strategy of w [E_STRATEGY_UNKNOWN]"),
    ],
)
def test_a_strategy_that_is_not_found_is_one_clear_line(
    desk: Desk, halts: SqlStrategyHalts, reference: str, said: str
) -> None:
    for call in (halts.halt, halts.resume):
        with pytest.raises(QmtlError) as refused:
            call(desk.world, reference, "olga", "")
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(QmtlError, match="E_WORLD_UNKNOWN"):
        halts.halt("nowhere", reference, "olga", "")
    assert shown(desk) == [False, False]


def test_no_name_takes_a_strategy_id_or_its_beginning_from_another_strategy(
    desk: Desk, halts: SqlStrategyHalts
) -> None:
    """Stored names, which came in before such names were refused."""
    rogue = "strategy:0123456789abcdef"
    for strategy, name in ((rogue, "momentum"), ("strategy:ff", rogue), ("strategy:fe", rogue[:14])):
        begin_run(desk.database, run_of(f"run-{strategy}", strategy, desk.world, name))
    assert halts.halt(desk.world, rogue, "olga", "").strategy_id == rogue
    with pytest.raises(
        QmtlError, match=rf"names 2 strategies of w: momentum {rogue}, {rogue[:14]} strategy:fe"
    ):
        halts.halt(desk.world, rogue[:14], "olga", "")
    assert halts.resume(desk.world, rogue[:16], "olga", "").strategy_id == rogue
    assert halts.halt(desk.world, "momentum", "olga", "").strategy_id == rogue


def test_halts_policies_decisions_applies_and_orders_at_once_neither_deadlock_nor_fail(
    desk: Desk, halts: SqlStrategyHalts
) -> None:
    """PostgreSQL ends one of two transactions that wait for each other with an error."""
    stop = threading.Event()
    orders = OrderAcceptance(desk.database)
    sessions = [desk.session(name) for name in desk.strategies]

    def halt_and_resume(name: str) -> Callable[[], object]:
        def act() -> None:
            halts.halt(desk.world, name, "olga", "")
            halts.resume(desk.world, name, "olga", "")

        return act

    def publish() -> None:
        orders.publish(
            [
                desk.order(session, desk.epoch, strategy_id=name)
                for session, name in zip(sessions, desk.strategies, strict=True)
            ],
            desk.caller,
        )

    def halt_world() -> None:
        desk.fence.halt(desk.world, "olga", "")
        desk.steps.resume(desk.world, "olga", "")

    def move() -> None:
        try:
            run = desk.request("dryrun", weights={name: counter() for name in desk.strategies})
        except QmtlError as error:
            if error.code not in ("E_APPLY_RUNNING", "E_APPLY_EMPTY", "E_WORLD_FROZEN"):
                raise
            return
        try:
            desk.freeze(run)
        except QmtlError as error:
            if error.code != "E_ETAG":
                raise
        else:
            desk.steps.drain(desk.world, run)
            desk.steps.restore(desk.world, run)
            desk.steps.unfreeze(desk.world, run)
        desk.steps.conclude(desk.world, run, "rolled_back", "")

    numbers = iter(range(1, 10**6))

    def counter() -> float:
        return next(numbers) / 10**6

    acts: list[Callable[[], object]] = [
        halt_and_resume("w0"),
        halt_and_resume("w1"),
        lambda: desk.rules.add_policy(desk.world, policy(), "olga"),
        desk.decide,
        halt_world,
        move,
        publish,
        lambda: desk.rules.set_default(desk.world, 1, "olga"),
    ]

    def repeat(act: Callable[[], object]) -> int:
        try:
            for _ in range(10):
                if stop.is_set():
                    break
                act()
        except BaseException:
            stop.set()  # one failure ends all, else the others repeat it
            raise
        return 1

    with ThreadPoolExecutor(len(acts)) as pool:
        assert sum(pool.map(repeat, acts)) == len(acts)
    assert shown(desk) == [False, False]
    assert audit_trail(desk.database).verify(desk.world)[0] > 50
