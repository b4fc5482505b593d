"""What the audit trail says of a session whose lease has ended."""

from activities.fence.acceptance import OrderAcceptance
from activities.sessions.sql import LEASE_ENDED, SqlSessionStore
from activities.storage.database import Database
from tests.support.desk import Desk
from tests.support.machine import wait_for
from tests.support.order_checker import order_violations


def test_a_session_that_is_ended_after_its_lease_has_ended_with_the_lease(database: Database) -> None:
    """The trail had the caller's reason, and nothing explained why orders had been refused before."""
    desk = Desk(database)
    desk.apply("dryrun")
    desk.sessions = SqlSessionStore(database, 0.2)
    session = desk.session()
    acceptance, told = OrderAcceptance(database), dict[str, str]()

    def refused() -> bool:
        order = desk.order(session, desk.epoch)
        (verdict,) = acceptance.publish([order], desk.caller)
        told[order.order_id] = verdict.reason.value if verdict.reason else "accepted"
        return told[order.order_id] == "no_session"

    wait_for(refused, "end of the lease")
    assert desk.sessions.end(session, "the strategy was stopped", "ana").end_reason == LEASE_ENDED
    assert order_violations(database, desk.world, told, at_rest=False) == []


def test_a_session_that_is_ended_in_time_has_the_reason_of_who_ended_it(database: Database) -> None:
    desk = Desk(database)
    desk.apply("dryrun")
    session, reason = desk.session(), "the strategy was stopped"
    assert desk.sessions.end(session, reason, "ana").end_reason == reason
    assert desk.sessions.end(session, "again", "ana").end_reason == reason
