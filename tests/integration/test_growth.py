"""What is read each second reads open sessions and valid tokens, however many ended or expired before."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection

from activities.access.sql import SqlTokenStore
from activities.sessions.listing import sessions_since
from activities.sessions.sql import SqlSessionStore
from activities.storage.database import Database
from activities.storage.tables import SessionRow, TokenRow
from activities.storage.transactions import utc_now
from qmtl_sdk.contracts.sessions import SessionOpen
from tests.support.statements import Statement, statements

MANY = 3000
BEFORE = "2025-01-01T00:00:00.000000+00:00"


def is_query_of(table: str, statement: Statement) -> bool:
    text = statement[0].replace("\n", "")
    return text.startswith("SELECT") and f"FROM {table}" in text


def plan(connection: Connection, statement: Statement) -> str:
    how = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
    return str(connection.exec_driver_sql(how + statement[0], statement[1]).fetchall())


def ended(number: int) -> SessionRow:
    return SessionRow(
        session_id=f"ended-{number}",
        # As many as there are in use: with one strategy, an index that begins with it is as good as another.
        world_id=f"w{number // 100}",
        strategy_id=f"strategy:{number % 500}",
        name="n",
        actor="ana",
        secret_hash="h",
        runner="r",
        host="h",
        execution_domain="dryrun",
        opened_at=BEFORE,
        expires_at=BEFORE,
        ended_at=BEFORE,
    )


def revoked(name: str, expires_at: str) -> TokenRow:
    return TokenRow(
        token_id=name,
        subject="ana",
        grants="{}",
        created_by="olga",
        issuers='["olga"]',
        created_at=BEFORE,
        expires_at=expires_at,
        revoked_at=BEFORE,
    )


@pytest.fixture
def grown(database: Database) -> Database:
    """With much that has ended, in a database that knows how much."""
    with database.write("test", bookkeeping=True) as tx:
        tx.insert_new([ended(number) for number in range(MANY)])
        tx.insert_new([revoked(f"old-{number}", BEFORE) for number in range(MANY)])
    with database.write("test", bookkeeping=True) as tx:
        tx.connection.exec_driver_sql("ANALYZE")
    return database


def since(database: Database) -> None:
    with database.read() as session:
        sessions_since(session, "w1", datetime.now(UTC))


OPEN = ("session_expiring", "session_open")
"""Indexes without the sessions that have ended."""
NEWEST = ("session_of", "session_opened")
"""Indexes in the order of a list of sessions; which is better depends on the world's share of them."""

READS: dict[str, tuple[Callable[[Database], object], str, tuple[str, ...]]] = {
    "expire": (lambda database: SqlSessionStore(database, 60).expire(), "session", OPEN),
    "of a world": (lambda database: SqlSessionStore(database, 60).all("w1"), "session", OPEN),
    "of all worlds": (lambda database: SqlSessionStore(database, 60).all(None), "session", OPEN),
    "ended": (
        lambda database: SqlSessionStore(database, 60).all("w1", True),
        "session",
        ("session_of", "session_opened"),
    ),
    "to acknowledge": (since, "session", OPEN),
    "revoked": (lambda database: SqlTokenStore(database).revoked(), "token", ("token_revoked",)),
    "list": (lambda database: SqlTokenStore(database).page(lambda _: True, 10), "token", ("token_listed",)),
}


def test_what_has_ended_is_not_read(grown: Database) -> None:
    """Each Gateway read all of it each second."""
    plans: dict[str, str] = {}
    for name, (read, table, _) in READS.items():
        with statements() as all_found:
            read(grown)
        found = [item for item in all_found if is_query_of(table, item)]
        assert len(found) == 1
        with grown.read() as session:
            plans[name] = plan(session.connection(), found[0])
    indexes = {name: indexes for name, (_, _, indexes) in READS.items()}
    assert {
        name: text for name, text in plans.items() if not any(index in text for index in indexes[name])
    } == {}


def test_what_is_open_is_found_among_what_has_ended(grown: Database) -> None:
    store = SqlSessionStore(grown, -1.0)
    wanted = SessionOpen(world_id="w1", strategy_id="strategy:a", runner="r", host="h")
    opened = store.open(wanted, "s", "dryrun", "ana").info.session_id
    assert [item.session_id for item in store.all("w1")] == [opened]
    assert store.expire() == 1
    assert store.all(None) == []
    assert store.all("w1", ended=True)[0].session_id == opened


def test_a_revoked_token_counts_until_no_stream_can_be_open_under_it(grown: Database) -> None:
    now = datetime.now(UTC)
    with grown.write("test", bookkeeping=True) as tx:
        for name, age in (("valid", -1), ("just now", 0), ("hours ago", 20), ("days ago", 200)):
            tx.session.add(revoked(name, (now - timedelta(hours=age)).isoformat()))
        good = revoked("good", utc_now())
        good.revoked_at = None
        tx.session.add(good)
    assert SqlTokenStore(grown).revoked() == {"valid", "just now", "hours ago"}
