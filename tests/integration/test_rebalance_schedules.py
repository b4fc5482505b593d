"""Firings of schedules of rebalancings: each decided once; nothing is requested that may not be."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import ScheduleAlreadyRunningError
from temporalio.service import RPCError, RPCStatusCode

from activities.access.principals import SqlPrincipalStore
from activities.access.sql import SqlTokenStore
from activities.fence.bookings import SqlBookings
from activities.fence.scales import WorldScales, scale_at
from activities.ledger.booking import DatedEntry
from activities.ledger.sql import book_entries
from activities.order_settings import DEFAULT_ACCOUNTS
from activities.rebalancing.firings import SqlFirings, is_run_of, scheduled_run_id
from activities.rebalancing.returns import counted_domain
from activities.rebalancing.schedules import SqlRebalanceSchedules
from activities.storage.database import Database
from activities.storage.tables import AllocationRow, RebalancingScheduleRow
from activities.storage.transactions import utc_text
from qmtl_sdk.contracts.access import Caller, Role, TokenInfo
from qmtl_sdk.contracts.allocations import AllocationUpdate
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import Booking, Entry
from qmtl_sdk.contracts.rebalance_schedules import Firing, RebalanceScheduleBody
from qmtl_sdk.contracts.worlds import WorldUpdate
from temporal.rebalance_schedules import RebalanceScheduleService
from tests.support.rebalance_runs import Runs, carried_out, holds
from tests.support.target_book import CAPITAL, Book

D = Decimal
FIRST = datetime.now(UTC).replace(hour=1)
"""The time before the first firing: all of them are on this day."""
OPERATOR = {"*": Role.OPERATOR}
OLGA = Caller(subject="olga", token_id="t1", grants=OPERATOR)


class Stage:
    """Two worlds, each with a strategy, and a schedule that olga has set."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.book = Book(database)
        self.other = Book(database, spec={**CAPITAL, "world": "v"})
        self.runs = Runs(database)
        self.runs.share(w="0.5", v="0.3")
        self.schedules = SqlRebalanceSchedules(database)
        self.firings = SqlFirings(database, self.schedules, self.runs.requests)
        self.tokens = SqlTokenStore(database)
        self.people = SqlPrincipalStore(database)
        self.people.add("olga", "system")
        self.token("t1", OPERATOR)
        self.fired = 0
        self.booked = 0

    def token(self, token_id: str, grants: dict[str, Role], days: int = 30) -> None:
        now = FIRST - timedelta(days=1)
        self.tokens.add(
            TokenInfo(
                token_id=token_id,
                subject="olga",
                grants=grants,
                created_by="system",
                issuers=("system", "ines"),
                created_at=now,
                expires_at=now + timedelta(days=days),
            )
        )

    def set(self, method: str = "drift_bands", live: bool = True, **fields: Any) -> None:
        worlds = fields.pop("worlds", {"w": ("0.5", "0.1"), "v": ("0.3", "0.1")})
        named = [
            {"world_id": name, **dict(zip(("target", "width"), values, strict=False))}
            for name, values in worlds.items()
        ]
        caller = Caller(subject="olga", token_id=fields.pop("token_id", "t1"), grants=OPERATOR)
        name = fields.pop("name", "daily")
        body = RebalanceScheduleBody.model_validate({"method": method, "worlds": named, **fields})
        self.schedules.set(name, body, caller, live)

    def earn(self, amount: str, book: Book | None = None) -> None:
        """Let a strategy that holds something earn an amount, or lose it."""
        found, self.booked = book or self.book, self.booked + 1
        kind = "fee" if amount.startswith("-") else "dividend"
        booking = {
            "booking_id": f"b{self.booked}",
            "kind": kind,
            "strategy_id": found.desk.strategies[0],
            "account": "paper",
            "symbol": "AAPL",
            "amount": amount.removeprefix("-"),
            "reason": "a test",
        }
        SqlBookings(self.database).record(found.desk.world, Booking.model_validate(booking), "olga")

    def fire(self, again: bool = False) -> Firing:
        """Fire at the next hour; `again`: at the same one."""
        self.fired += not again
        return self.firings.fire("daily", FIRST + timedelta(hours=self.fired))

    def shares(self) -> dict[str, str]:
        found = self.runs.allocations.snapshot().allocations
        return {item.world_id: f"{item.weight:f}" for item in found}

    def newest(self) -> Firing:
        found = self.schedules.find("daily").newest
        assert found is not None
        return found


@pytest.fixture
def stage(database: Database) -> Stage:
    found = Stage(database)
    holds(found.book, "1")
    holds(found.other, "1")
    return found


def run_ids(stage: Stage) -> list[str]:
    return [item.run_id for item in stage.runs.requests.newest()]


def test_a_share_that_has_drifted_is_requested_in_the_name_of_who_set_it(stage: Stage) -> None:
    stage.set(reason="monthly")
    stage.earn("2000")  # a fifth of 10,000: 0.6 of 1.1
    firing = stage.fire()
    run = stage.runs.requests.find(scheduled_run_id("daily", firing.at))
    assert (firing.outcome, firing.run_id) == ("requested", run.run_id)
    assert {item.world_id: f"{item.after:f}" for item in firing.shares} == {
        "v": "0.272727272727",
        "w": "0.545454545454",
    }
    assert (run.requested_by, run.approvals_required) == ("olga", 1)
    assert "0.5 → 0.545454545454" in run.title
    with pytest.raises(QmtlError) as own:
        stage.runs.approvals.record(run.run_id, "olga", "approve", ApprovalBody())
    assert own.value.code == "E_APPROVAL_OWN"
    assert stage.shares() == {"v": "0.3", "w": "0.5"}, "nothing changes before somebody approves"
    assert stage.newest() == firing


def test_who_issued_the_token_of_the_schedule_cannot_approve_its_runs(stage: Stage) -> None:
    """Also when the token is forgotten, a week after its end."""
    stage.set()
    stage.earn("2000")
    with stage.database.write("test", bookkeeping=True) as tx:
        tx.connection.exec_driver_sql("DELETE FROM token")
    stage.token("t2", OPERATOR)
    run_id = stage.fire().run_id
    with pytest.raises(QmtlError) as issuer:
        stage.runs.approvals.record(run_id, "ines", "approve", ApprovalBody())
    assert issuer.value.code == "E_APPROVAL_OWN"


def test_an_approved_run_changes_the_shares_and_drift_begins_anew(stage: Stage) -> None:
    stage.set()
    stage.earn("2000")
    run_id = stage.fire().run_id
    stage.runs.approvals.record(run_id, "ana", "approve", ApprovalBody())
    stage.runs.beginnings.begin(run_id)
    assert carried_out(stage.runs, stage.book, run_id).outcome == "completed"
    assert stage.shares() == {"v": "0.272727272727", "w": "0.545454545454"}
    assert stage.fire().outcome == "unchanged", "what was earned before counts no more"
    stage.earn("-2000")
    second = stage.fire()
    # v has lost nothing; w has lost 2,000 of 10,909.09: 0.545454545454 · 0.816667 of 0.9.
    assert {item.world_id: f"{item.after:.6f}" for item in second.shares} == {
        "v": "0.303030",
        "w": "0.494949",
    }


def test_a_firing_is_decided_once(stage: Stage) -> None:
    stage.set()
    stage.earn("2000")
    first = stage.fire()
    stage.earn("4000")
    assert stage.fire(again=True) == first
    assert run_ids(stage) == [first.run_id]


def test_a_firing_that_was_lost_after_its_request_finds_it(stage: Stage) -> None:
    stage.set()
    stage.earn("2000")
    first = stage.fire()
    with stage.database.write("test", bookkeeping=True) as tx:
        row = tx.session.get_one(RebalancingScheduleRow, "daily")
        row.firing, row.fired_at = "", ""
        tx.session.add(row)
    stage.earn("4000")  # another proposal, which would be another body of the same run
    again = stage.fire(again=True)
    assert (again.outcome, again.run_id) == ("requested", first.run_id)
    assert run_ids(stage) == [first.run_id]
    assert stage.firings.fail("daily", first.at, "no worker").outcome == "requested"


def test_a_difference_that_equals_the_tolerance_requests_nothing(stage: Stage) -> None:
    worlds = {"w": ("0.5", "0.04"), "v": ("0.3", "0.1")}
    stage.earn("2000")
    stage.set(worlds=worlds, tolerance="0.04")
    within = stage.fire()
    assert (within.outcome, within.run_id, run_ids(stage)) == ("unchanged", "", [])
    assert {item.world_id: f"{item.after:f}" for item in within.shares}["w"] == "0.54"
    stage.set(worlds=worlds, tolerance="0.039999999999")
    assert stage.fire().outcome == "requested"


def test_given_shares_are_brought_back_and_need_no_capital(stage: Stage) -> None:
    stage.set("given", worlds={"w": ("0.4",), "v": ("0.3",)})
    firing = stage.fire()
    assert (firing.outcome, firing.reason) == ("requested", "rebalance w 0.5 → 0.4"), "v stays as it is"


def test_a_schedule_without_a_drift_stays_within(stage: Stage) -> None:
    stage.set(tolerance="0")
    assert stage.fire().outcome == "unchanged"


def skipped(stage: Stage, *words: str) -> None:
    before = run_ids(stage)
    firing = stage.fire()
    assert firing.outcome == "skipped"
    assert all(word in firing.reason for word in words), firing.reason
    assert run_ids(stage) == before
    assert stage.newest() == firing


def refused(stage: Stage, *words: str) -> None:
    firing = stage.fire()
    assert firing.outcome == "refused"
    assert all(word in firing.reason for word in words), firing.reason
    assert run_ids(stage) == []
    assert stage.newest() == firing


def test_it_is_skipped_while_a_run_waits_and_fires_again_after_it(stage: Stage) -> None:
    stage.set()
    stage.earn("2000")
    first = stage.fire()
    skipped(stage, "its run", first.run_id, "has not ended")
    stage.runs.ends.conclude(first.run_id, "rolled_back", "rejected")
    assert stage.fire().outcome == "requested"


def test_the_runs_of_a_schedule_are_not_those_of_one_whose_name_begins_with_its_name(stage: Stage) -> None:
    stage.set("given", worlds={"w": ("0.4",)}, name="daily-2026")
    other = stage.firings.fire("daily-2026", FIRST).run_id
    stage.set()
    skipped(stage, f"the rebalancing {other}, of w, has not ended")
    for at in (FIRST, datetime(3001, 1, 1, tzinfo=UTC)):
        for name in ("a", "a-2", scheduled_run_id("a", at).removeprefix("scheduled-")):
            run_id = scheduled_run_id(name, at)
            assert is_run_of(name, run_id)
            assert not any(is_run_of(shorter, run_id) for shorter in ("a", "a-2") if shorter != name)
    assert not is_run_of("a.2", scheduled_run_id("a-2", FIRST))


def test_it_is_skipped_while_another_rebalancing_has_one_of_its_worlds(stage: Stage) -> None:
    stage.set()
    stage.earn("2000")
    stage.runs.approved("mine", {"v": "0.2"})
    skipped(stage, "the rebalancing mine, of v, has not ended")
    stage.runs.beginnings.begin("mine")
    skipped(stage, "v is being rebalanced by mine")


def test_it_is_skipped_while_an_apply_has_one_of_its_worlds(stage: Stage) -> None:
    stage.set()
    stage.earn("2000")
    run = stage.book.desk.request()
    skipped(stage, f"the apply {run} of w has not ended")


def test_it_is_skipped_where_a_world_is_halted_archived_or_unknown(stage: Stage) -> None:
    stage.set()
    stage.earn("2000")
    stage.book.desk.fence.halt("v", "olga", "enough")
    skipped(stage, "v is halted")
    stage.book.desk.rules.update_world("v", WorldUpdate(state="archived"), "olga")
    skipped(stage, "v is archived")
    with stage.database.write("test", bookkeeping=True) as tx:
        tx.connection.exec_driver_sql("DELETE FROM world WHERE world_id = 'v'")
    skipped(stage, "there is no world v")


def test_it_is_skipped_once_a_share_was_taken_away_and_while_it_is_paused(stage: Stage) -> None:
    stage.set()
    stage.runs.share(v="0")
    skipped(stage, "the share of v is 0; give it one: qmtl world rebalance-apply v=0.3; ")
    stage.set(paused=True)
    skipped(stage, "paused")


def test_given_shares_need_no_capital(stage: Stage) -> None:
    Book(stage.database, spec={"world": "x"})
    stage.runs.share(x="0.1")
    stage.set("given", worlds={"x": ("0.1",)})
    assert stage.fire().outcome == "unchanged"


def not_set(stage: Stage, code: str, words: str, method: str = "drift_bands", **fields: Any) -> None:
    """A schedule is refused in one line with what to do; nothing is changed, and no firing finds it."""
    held = stage.schedules.all()
    with pytest.raises(QmtlError) as caught:
        stage.set(method, **fields)
    assert (caught.value.code, words in caught.value.message) == (code, True), str(caught.value)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert stage.schedules.all() == held


@pytest.mark.parametrize("replaced", [False, True], ids=["a new one", "one in the place of another"])
def test_a_schedule_that_could_request_nothing_is_refused_when_it_is_set(
    stage: Stage, replaced: bool
) -> None:
    """Paused, it may wait for what it lacks."""
    Book(stage.database, spec={**CAPITAL, "world": "x"})
    Book(stage.database, spec={"world": "y"})
    stage.runs.share(y="0.1")
    if replaced:
        stage.set()
    two = {"w": ("0.5", "0.1"), "x": ("0.1", "0.1")}
    not_set(stage, "E_ALLOCATION_MISSING", "x has no share", worlds=two)
    not_set(stage, "E_ALLOCATION_MISSING", "x has no share", "given", worlds={"x": ("0.1",)})
    not_set(stage, "E_WEIGHT", "y has no capital", worlds={"y": ("0.1", "0.1")})
    not_set(stage, "E_WEIGHT", "y has no capital", "equal_risk", worlds={"y": (), "w": ()})
    stage.set(worlds=two, paused=True)
    skipped(stage, "paused")
    stage.runs.share(x="0.1")
    stage.set(worlds=two)
    assert stage.fire().outcome == "unchanged"


def test_worlds_with_other_rules_of_instruments_are_in_no_schedule_together(stage: Stage) -> None:
    """Each firing that changed both was refused."""
    Book(stage.database, spec={**CAPITAL, "world": "x", "instruments": {"lot": "5"}})
    stage.runs.share(x="0.1")
    two = {"w": ("0.4", "0.1"), "x": ("0.1", "0.1")}
    not_set(stage, "E_BODY_INVALID", "w, x have different rules of instruments", worlds=two)
    not_set(stage, "E_BODY_INVALID", "different", "given", worlds={"w": ("0.4",), "x": ("0.2",)})
    stage.set(worlds=two, paused=True)
    stage.set("given", worlds={"w": ("0.4",), "x": ("0.1",)})
    assert stage.fire().reason == "rebalance w 0.5 → 0.4"


@pytest.mark.parametrize("method", ["drift_bands", "given"])
def test_a_world_whose_strategies_have_shares_of_their_own_is_in_no_schedule_that_changes_it(
    stage: Stage, method: str
) -> None:
    """Beside another world, each firing was refused: the other one was never brought back to its band."""
    own_shares(stage)
    band = ("0.4", "0.1") if method == "drift_bands" else ("0.4",)
    said = "strategies of w have shares of their own"
    not_set(stage, "E_WEIGHT", said, method, worlds={"w": band})
    not_set(stage, "E_WEIGHT", said, method, worlds={"v": band, "w": band})
    stage.set("given", worlds={"w": ("0.5",), "v": ("0.2",)})
    assert stage.fire().reason == "rebalance v 0.3 → 0.2"


def test_what_passes_by_itself_is_left_to_the_firings(stage: Stage) -> None:
    """A halt, a run that waits, few days, and shares of other worlds, which their own schedules lower."""
    stage.book.desk.fence.halt("v", "olga", "enough")
    stage.runs.request("mine", {"w": "0.4"})
    stage.set("equal_risk", worlds={"w": (), "v": ()})
    stage.set("given", worlds={"w": ("0.8",)})


def test_a_disabled_person_requests_nothing(stage: Stage) -> None:
    stage.set()
    stage.earn("2000")
    stage.people.disable("olga", "root")
    refused(stage, "olga was disabled by root", "sets it again")


@pytest.mark.parametrize(
    ("token_id", "grants", "days"),
    [
        ("t2", {"*": Role.READER}, 30),
        ("t2", {"w": Role.OPERATOR}, 30),
        ("t2", {"*": Role.OPERATOR}, 0),
        ("oidc:new", {"*": Role.AUTHOR}, 0),
    ],
    ids=["a lower role", "one world", "an ended token", "a sign-in with a lower role"],
)
def test_who_has_lost_the_role_requests_nothing(
    stage: Stage, token_id: str, grants: dict[str, Role], days: int
) -> None:
    stage.set(token_id="forgotten")
    stage.earn("2000")
    stage.token(token_id, grants, days)
    stage.tokens.revoke("t1", "root")
    refused(stage, "olga has no valid token with the role operator in")


def test_a_sign_in_counts_until_the_next_one(stage: Stage) -> None:
    """The token of an identity provider ends within the hour; the person has not lost their role by that."""
    stage.token("oidc:one", OPERATOR, days=0)
    stage.set(token_id="oidc:one")
    stage.earn("2000")
    stage.tokens.revoke("t1", "root")
    assert stage.fire().outcome == "requested"


def test_a_revoked_sign_in_does_not_give_the_one_before_back(stage: Stage) -> None:
    stage.token("oidc:old", OPERATOR, days=-1)
    stage.token("oidc:new", {"*": Role.READER}, days=0)
    stage.set(token_id="oidc:old")
    stage.earn("2000")
    stage.tokens.revoke("t1", "root")
    stage.tokens.revoke("oidc:new", "root")
    refused(stage, "olga has no valid token with the role operator in")


def test_a_schedule_ends_with_the_token_that_set_it(stage: Stage) -> None:
    """Where that is revoked: also long after its end, though the person has another."""
    stage.set()
    stage.earn("2000")
    stage.tokens.revoke("t1", "root")
    with stage.database.write("test", bookkeeping=True) as tx:
        tx.connection.exec_driver_sql("UPDATE token SET expires_at = '2024-01-01'")
    stage.token("t2", OPERATOR)  # what has ended a week ago is forgotten with it
    refused(stage, "the token with which olga set it was revoked", "sets it again")
    stage.set(token_id="t2")
    assert stage.fire().outcome == "requested"


def test_a_world_that_allows_live_needs_the_live_header_when_the_schedule_was_set(stage: Stage) -> None:
    stage.set(live=False)
    stage.earn("2000")
    refused(stage, "v allows live now", "--live")


def test_targets_that_other_worlds_leave_no_room_for_are_refused(stage: Stage) -> None:
    stage.set("given", worlds={"w": ("0.8",)})
    refused(stage, "E_WEIGHT", "1.1")


def own_shares(stage: Stage) -> None:
    """Give a strategy of w a share of its own."""
    own = {"allocations": [{"world_id": "w", "weight": "0.5", "strategies": {"strategy:w0": "0.1"}}]}
    stage.runs.allocations.update(AllocationUpdate.model_validate(own), "olga")


def test_strategies_with_shares_of_their_own_are_refused_as_the_command_refuses_them(stage: Stage) -> None:
    stage.set()
    own_shares(stage)
    stage.earn("2000")
    refused(stage, "strategies of w have shares of their own")


def test_an_attempt_that_was_given_up_and_requests_its_run_all_the_same_counts(stage: Stage) -> None:
    """The firing stayed failed, while its run waited for approvals."""
    stage.set()
    stage.earn("2000")
    at = FIRST + timedelta(hours=1)
    stage.firings.fail("daily", at, "it took too long")
    late = stage.firings._decide("daily", at)
    assert (stage.newest().outcome, stage.firings.fire("daily", at).run_id) == ("failed", late.run_id)
    stage.schedules.record_firing("daily", late)
    assert stage.newest() == late
    stage.schedules.record_firing("daily", Firing(at=at, outcome="skipped", reason="too late"))
    assert stage.newest() == late == stage.firings.fire("daily", at)


def test_a_failed_firing_says_why_and_ends_nothing(stage: Stage) -> None:
    stage.set()
    at = FIRST + timedelta(hours=1)
    failed = stage.firings.fail("daily", at, "no disk")
    assert (failed.outcome, stage.newest().reason) == ("failed", "no disk")
    stage.firings.fail("daily", at - timedelta(hours=1), "an older one")
    assert stage.newest() == failed
    assert stage.firings.fire("daily", at) == failed


def test_a_schedule_is_settled_when_temporal_has_it_as_it_is(stage: Stage) -> None:
    stage.set()
    assert stage.schedules.unsettled() == ["daily"]
    set_at, body = stage.schedules.wanted("daily")
    stage.set(paused=True)
    stage.schedules.settle("daily", set_at)
    assert stage.schedules.unsettled() == ["daily"], "Temporal has the first one"
    stage.schedules.settle("daily", stage.schedules.wanted("daily")[0])
    assert (stage.schedules.unsettled(), stage.schedules.find("daily").is_running) == ([], True)
    stage.schedules.settle("daily", set_at)  # of a slow Gateway, which has overwritten it
    assert stage.schedules.unsettled() == ["daily"]
    assert body is not None


def test_a_removed_schedule_fires_no_more_and_is_forgotten_in_the_end(stage: Stage) -> None:
    stage.set()
    stage.earn("2000")
    before, _ = stage.schedules.wanted("daily")
    stage.schedules.remove("daily", OLGA)
    assert stage.schedules.all() == []
    assert stage.fire().reason == "daily was removed"
    assert run_ids(stage) == []
    stage.schedules.settle("daily", before)
    assert stage.schedules.names() == ["daily"]
    removed_at, body = stage.schedules.wanted("daily")
    assert body is None
    stage.schedules.settle("daily", removed_at)
    assert stage.schedules.names() == []
    with pytest.raises(QmtlError) as unknown:
        stage.schedules.remove("daily", OLGA)
    assert unknown.value.code == "E_SCHEDULE_UNKNOWN"


class Temporal:
    """The calls of Temporal's client about schedules. `meanwhile`: what happens while it creates one."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.meanwhile: Callable[[], None] = lambda: None

    async def create_schedule(self, schedule_id: str, _: object) -> None:
        if schedule_id in self.held:
            raise ScheduleAlreadyRunningError
        self.meanwhile()
        self.held.add(schedule_id)

    def get_schedule_handle(self, schedule_id: str) -> Any:
        """Return a handle that can delete it. (Any: it stands for the client's.)"""

        async def delete() -> None:
            if schedule_id not in self.held:
                raise RPCError("unknown", RPCStatusCode.NOT_FOUND, b"")
            self.held.discard(schedule_id)

        return SimpleNamespace(delete=delete)


def test_a_schedule_that_is_removed_while_temporal_gets_it_does_not_stay_there(stage: Stage) -> None:
    """Another Gateway has removed it, and has found nothing in Temporal."""
    temporal = Temporal()
    service = RebalanceScheduleService(cast(Any, temporal), stage.database.store_id, stage.schedules)

    def removed() -> None:
        stage.schedules.remove("daily", OLGA)
        stage.schedules.settle("daily", stage.schedules.wanted("daily")[0])

    stage.set()
    temporal.meanwhile = removed
    assert asyncio.run(service.recover()) == 1
    assert (temporal.held, stage.schedules.names()) == (set(), [])


def test_a_schedule_that_only_temporal_has_is_forgotten_after_a_firing(stage: Stage) -> None:
    temporal = Temporal()
    service = RebalanceScheduleService(cast(Any, temporal), stage.database.store_id, stage.schedules)
    stage.set()
    assert asyncio.run(service.recover()) == 1
    with stage.database.write("test", bookkeeping=True) as tx:
        tx.connection.exec_driver_sql("DELETE FROM rebalancing_schedule")
    assert stage.fire().reason == "daily was removed"
    assert stage.schedules.all() == []
    assert len(temporal.held) == 1
    assert asyncio.run(service.recover()) == 1
    assert (temporal.held, stage.schedules.names()) == (set(), [])


def swing(stage: Stage, book: Book, size: int, days: int, account: str = "paper") -> None:
    """Let a strategy earn and lose an amount in turn, on each of the last whole days."""
    key = {"strategy_id": book.desk.strategies[0], "account": account, "symbol": "AAPL"}
    for number in range(days, 0, -1):
        at = FIRST - timedelta(days=number)
        what = {"kind": "dividend", "cash": size} if number % 2 else {"kind": "fee", "fee": size}
        stage.booked += 1
        entry = Entry.model_validate({"ref": f"swing:{stage.booked}", **key, **what})
        with stage.database.write("test", bookkeeping=True) as tx:
            book_entries(tx, book.desk.world, [DatedEntry(utc_text(at), entry)])


@pytest.fixture
def quiet(database: Database) -> Stage:
    """Whose worlds have not traded yet."""
    return Stage(database)


def test_equal_risk_divides_by_the_volatility_of_each_worlds_own_days(quiet: Stage) -> None:
    swing(quiet, quiet.book, 300, 20)
    swing(quiet, quiet.other, 100, 20)
    quiet.set("equal_risk", worlds={"w": (), "v": ()})
    firing = quiet.fire()
    assert {item.world_id: f"{item.after:f}" for item in firing.shares} == {"v": "0.6", "w": "0.2"}
    assert (firing.outcome, firing.reason) == ("requested", "rebalance v 0.3 → 0.6, w 0.5 → 0.2")
    assert "volatility 0.0102598 per day" in firing.shares[0].why


def test_a_world_with_few_days_keeps_its_share(quiet: Stage) -> None:
    swing(quiet, quiet.book, 300, 20)
    swing(quiet, quiet.other, 100, 19)
    quiet.set("equal_risk", worlds={"w": (), "v": ()}, tolerance="0")
    firing = quiet.fire()
    assert (firing.outcome, quiet.shares()) == ("unchanged", {"v": "0.3", "w": "0.5"})
    assert "insufficient: 19 returns of 20" in firing.shares[0].why


def goes_live(stage: Stage, world: str) -> None:
    with stage.database.write("test", bookkeeping=True) as tx:
        tx.connection.exec_driver_sql(f"UPDATE activation SET mode = 'live' WHERE world_id = '{world}'")


def test_paper_profit_of_worlds_that_trade_live_moves_no_share(stage: Stage) -> None:
    """It is what the author of a strategy says: nobody else names the prices of paper orders."""
    stage.set()
    stage.earn("2000")
    goes_live(stage, "w")
    goes_live(stage, "v")
    within = stage.fire()
    assert within.outcome == "unchanged"
    assert "earned 0 at paper-live since the share was set" in within.shares[1].why
    swing(stage, stage.book, 2000, 1, "paper-live")
    requested = stage.fire()
    assert "earned 2000 at paper-live since the share was set" in requested.shares[1].why
    assert f"{requested.shares[1].after:f}" == "0.545454545454"


@pytest.mark.parametrize("method", ["drift_bands", "equal_risk"])
def test_results_on_paper_and_live_are_not_compared(stage: Stage, method: str) -> None:
    """A world that earns on paper would take of the capital of one that trades live."""
    worlds = {"w": ("0.5", "0.1"), "v": ("0.3", "0.1")} if method == "drift_bands" else {"w": (), "v": ()}
    stage.set(method, worlds=worlds)
    stage.earn("2000")
    goes_live(stage, "v")
    refused(stage, "v trades live and w on paper", "E_WEIGHT", "one schedule for each kind")
    not_set(stage, "E_WEIGHT", "v trades live and w on paper", method, worlds=worlds)
    stage.set("given", worlds={"w": ("0.5",), "v": ("0.3",)})
    assert stage.fire().outcome == "unchanged", "shares that people give follow from no results"
    stage.set(method, worlds={"w": worlds["w"]})
    goes_live(stage, "w")
    stage.set(method, worlds=worlds)
    assert stage.fire().outcome == "unchanged"


@pytest.mark.parametrize(
    ("allow_live", "active", "entry", "domain"),
    [
        (True, False, False, Domain.DRYRUN),
        (True, True, False, Domain.LIVE),
        (True, False, True, Domain.LIVE),
        (False, False, True, Domain.DRYRUN),
    ],
    ids=["on paper", "active live", "an entry of live", "back on paper for good"],
)
def test_the_domain_that_counts_is_the_one_in_which_a_world_trades(
    quiet: Stage, allow_live: bool, active: bool, entry: bool, domain: Domain
) -> None:
    book = Book(quiet.database, spec={**CAPITAL, "world": "x", "allow_live": allow_live})
    if active:
        goes_live(quiet, "x")
    if entry:
        swing(quiet, book, 100, 1, "paper-live")
    with quiet.database.read() as session:
        assert counted_domain(session, "x", DEFAULT_ACCOUNTS) is domain


def test_equal_risk_reads_the_days_of_one_account(quiet: Stage) -> None:
    swing(quiet, quiet.book, 100, 20, "paper-live")
    swing(quiet, quiet.book, 9000, 20)
    swing(quiet, quiet.other, 100, 20, "paper-live")
    quiet.set("equal_risk", worlds={"w": (), "v": ()})
    firing = quiet.fire()
    assert {item.world_id: f"{item.after:f}" for item in firing.shares} == {"v": "0.4", "w": "0.4"}
    assert firing.shares[1].why.endswith("; days at paper-live")


def test_a_change_of_a_share_is_not_taken_for_risk(quiet: Stage) -> None:
    """Days at twice the share earned and lost twice as much."""
    swing(quiet, quiet.book, 200, 20)
    swing(quiet, quiet.other, 100, 20)
    past = [{"until": utc_text(FIRST), "fraction": "2"}]
    with quiet.database.write("test", bookkeeping=True) as tx:
        row = tx.session.get_one(AllocationRow, "w")
        row.past = json.dumps(past)
        tx.session.add(row)
    quiet.set("equal_risk", worlds={"w": (), "v": ()}, tolerance="0")
    assert {item.world_id: f"{item.after:f}" for item in quiet.fire().shares} == {"v": "0.4", "w": "0.4"}


def test_a_run_writes_down_the_scale_that_was(stage: Stage) -> None:
    stage.set("given", worlds={"w": ("0.4",)})
    run_id = stage.fire().run_id
    stage.runs.approvals.record(run_id, "ana", "approve", ApprovalBody())
    begun = stage.runs.beginnings.begin(run_id)
    with stage.database.read() as session:
        row = session.get_one(AllocationRow, "w")
        past, scales = row.past, WorldScales.model_validate_json(row.scales)
    before, after = begun - timedelta(hours=1), begun + timedelta(hours=1)
    assert scale_at(past, scales.world, utc_text(before)) == 1
    assert scale_at(past, scales.world, utc_text(after)) == Fraction(4, 5)


def given_share(*worlds: str) -> RebalanceScheduleBody:
    named = [{"world_id": world, "target": "0.1"} for world in worlds]
    return RebalanceScheduleBody.model_validate({"method": "given", "worlds": named})


@pytest.mark.parametrize(
    ("grants", "code"),
    [({"v": Role.OPERATOR}, "E_WORLD_FORBIDDEN"), ({"v": Role.OPERATOR, "w": Role.AUTHOR}, "E_ROLE")],
    ids=["of another world", "an author"],
)
def test_only_an_operator_of_its_worlds_replaces_or_removes_a_schedule(
    stage: Stage, grants: dict[str, Role], code: str
) -> None:
    """Also one who has found the name free: the store decides, in the transaction that writes."""
    stage.set()
    before = stage.schedules.find("daily")
    bob = Caller(subject="bob", token_id="", grants=grants)
    for change in (
        lambda: stage.schedules.set("daily", given_share("v"), bob),
        lambda: stage.schedules.set("other", given_share("v", "w"), bob),
        lambda: stage.schedules.remove("daily", bob),
    ):
        with pytest.raises(QmtlError) as caught:
            change()
        assert caught.value.code == code
    assert stage.schedules.all() == [before]
    stage.schedules.set("other", given_share("v"), bob)
    stage.schedules.remove("other", bob)


def test_a_world_is_in_ten_schedules_at_most(stage: Stage) -> None:
    """So that the operator of one world leaves places to the others."""
    bob = Caller(subject="bob", token_id="", grants={"v": Role.OPERATOR})
    for number in range(10):
        stage.schedules.set(f"mine-{number}", given_share("v"), bob)
    for caller, worlds in ((bob, ["v"]), (OLGA, ["w", "v"])):
        with pytest.raises(QmtlError) as caught:
            stage.schedules.set("more", given_share(*worlds), caller)
        assert (caught.value.code, "v is in 10" in str(caught.value)) == ("E_SCHEDULES_MANY", True)
    stage.schedules.set("mine-3", given_share("v"), bob)
    stage.schedules.set("more", given_share("w"), OLGA)
    stage.schedules.remove("mine-3", bob)
    stage.schedules.set("more", given_share("v", "w"), OLGA)


@pytest.mark.parametrize("column", ["body", "firing"])
def test_a_schedule_that_cannot_be_read_is_mended_by_one_command(stage: Stage, column: str) -> None:
    """Of an operator of every world, since nobody can say whose it is."""
    v_only = Caller(subject="bob", token_id="", grants={"v": Role.OPERATOR})

    def broken() -> None:
        with stage.database.write("test", bookkeeping=True) as tx:
            tx.connection.exec_driver_sql(f"UPDATE rebalancing_schedule SET {column} = '{{}}'")

    stage.schedules.set("daily", given_share("v"), v_only)
    broken()
    for change in (
        lambda: stage.schedules.set("daily", given_share("v"), v_only),
        lambda: stage.schedules.remove("daily", v_only),
    ):
        with pytest.raises(QmtlError) as caught:
            change()
        assert caught.value.code == "E_WORLD_FORBIDDEN"
    stage.set()
    assert stage.schedules.find("daily").body.world_ids == ("v", "w")
    broken()
    stage.schedules.remove("daily", OLGA)
    assert (stage.schedules.all(), stage.schedules.wanted("daily")[1]) == ([], None)
