# ruff: noqa: S608  the statements are made of constants
"""The statements of a transaction of the fence.

Plain SQL in few round trips, because every order pays for them.

The condition of the partial index of `order_log` is written out as in the index: with parameters in its
place, neither database would use the index.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg.pq import ExecStatus
from psycopg.types.json import Json
from sqlalchemy import Connection

from activities.fence.rules import Activation, FenceState, Session
from activities.storage.database import Database
from activities.storage.postgres import PostgresDatabase, lock_key
from qmtl_sdk.contracts.orders import Order

ACCEPTED = "accepted"
REFUSED = "refused"
FILLED = "filled"

_FENCE = tuple(FenceState.__dataclass_fields__)

# PostgreSQL's functions that lock a fence until the commit.
_EXCLUSIVE = "pg_advisory_xact_lock"
_SHARED = "pg_advisory_xact_lock_shared"


class LogLine(NamedTuple):
    """A row of the order log: an order with its verdict. `epoch` is the world's at that moment."""

    at: str
    world_id: str
    kind: str
    ref: str
    epoch: int
    strategy_id: str
    reason: str
    body: str


@dataclass(frozen=True)
class FenceSnapshot:
    """Fences by world, earlier verdicts by order id, activations by world and strategy, sessions by id."""

    fences: dict[str, FenceState]
    earlier: dict[str, LogLine]
    activations: dict[tuple[str, str], Activation]
    sessions: dict[str, Session]


class OrderRows(Protocol):
    """The statements of one database."""

    def read(self, connection: Connection, orders: Iterable[Order], alone: set[str]) -> FenceSnapshot:
        """Lock the fences of the orders' worlds until the commit, and read everything that the rules need.

        Fences of worlds in `alone` are locked exclusively, others are shared with other orders.
        """

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        """Read the earlier verdicts of these orders, by order id."""

    def write(self, connection: Connection, lines: Sequence[LogLine]) -> set[str]:
        """Insert orders, the accepted ones also as open orders. Returns the ids that were new.

        The earlier row of an id stands.
        """


def order_rows(database: Database) -> OrderRows:
    """Return the statements of a database."""
    return _PostgresRows() if isinstance(database, PostgresDatabase) else _SqliteRows()


def _selects(among: str) -> dict[str, str]:
    """Return the statement of each read. `among` is the database's expression for membership in a list."""
    return {
        "worlds": f"SELECT world_id, {', '.join(_FENCE)} FROM fence WHERE world_id {among.format('worlds')}",
        "earlier": f"SELECT {', '.join(LogLine._fields)} FROM order_log "
        f"WHERE ref {among.format('ids')} AND order_log.kind IN ('accepted', 'refused')",
        "activations": "SELECT world_id, strategy_id, active, mode FROM activation "
        f"WHERE world_id {among.format('worlds')} AND strategy_id {among.format('strategies')}",
        "sessions": "SELECT session_id, world_id, strategy_id, execution_domain, expires_at, "
        f"ended_at IS NOT NULL FROM session WHERE session_id {among.format('sessions')}",
    }


def _keys(orders: Iterable[Order]) -> dict[str, list[str]]:
    """Return the sorted ids of worlds, orders, strategies and sessions that the orders name."""
    of = list(orders)
    found = {
        "worlds": {o.world_id for o in of},
        "ids": {o.order_id for o in of},
        "strategies": {o.strategy_id for o in of},
        "sessions": {o.session_id for o in of},
    }
    return {name: sorted(values) for name, values in found.items()}


def _snapshot(rows: dict[str, list[tuple[Any, ...]]]) -> FenceSnapshot:
    """Build the snapshot from rows by statement. (Any: values of a database's driver.)"""
    return FenceSnapshot(
        {row[0]: FenceState(*row[1:]) for row in rows["worlds"]},
        _lines(rows["earlier"]),
        {(row[0], row[1]): Activation(bool(row[2]), row[3]) for row in rows["activations"]},
        {row[0]: Session(row[1], row[2], row[3], row[4], bool(row[5])) for row in rows["sessions"]},
    )


def _lines(rows: list[tuple[Any, ...]]) -> dict[str, LogLine]:
    return {line.ref: line for line in map(LogLine._make, rows)}


class _SqliteRows:
    """SQLite: a statement costs a call, not a round trip, and the only writer needs no locks."""

    _SELECTS = _selects("IN (SELECT value FROM json_each(:{}))")
    _INSERT = (
        f"INSERT INTO order_log ({', '.join(LogLine._fields)}) "
        f"VALUES ({', '.join('?' * len(LogLine._fields))}) ON CONFLICT DO NOTHING"
    )
    _OPEN = "INSERT INTO open_order (order_id, world_id, accepted_at) VALUES (?, ?, ?)"

    def read(self, connection: Connection, orders: Iterable[Order], alone: set[str]) -> FenceSnapshot:
        keys = {name: json.dumps(values) for name, values in _keys(orders).items()}
        driver = self._driver(connection)
        return _snapshot(
            {name: driver.execute(statement, keys).fetchall() for name, statement in self._SELECTS.items()}
        )

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        return _lines(
            self._driver(connection)
            .execute(self._SELECTS["earlier"], {"ids": json.dumps(list(ids))})
            .fetchall()
        )

    def write(self, connection: Connection, lines: Sequence[LogLine]) -> set[str]:
        driver = self._driver(connection)
        new = [line for line in lines if driver.execute(self._INSERT, line).rowcount]
        driver.executemany(
            self._OPEN, [(line.ref, line.world_id, line.at) for line in new if line.kind == ACCEPTED]
        )
        return {line.ref for line in new}

    @staticmethod
    def _driver(connection: Connection) -> sqlite3.Connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver


# The columns of a row of the order log, as PostgreSQL reads them from JSON.
_RECORD = ", ".join(f"{name} {'integer' if name == 'epoch' else 'text'}" for name in LogLine._fields)


class _PostgresRows:
    """PostgreSQL.

    First the locks, then one statement, which reads what was committed before they were granted.
    """

    _SELECTS = _selects("= ANY(%({})s)")
    _READ = "SELECT " + ", ".join(
        f"(SELECT json_agg(found) FROM ({statement}) found)" for statement in _SELECTS.values()
    )
    _INSERT = f"""
        WITH line AS (
            INSERT INTO order_log ({", ".join(LogLine._fields)})
            SELECT * FROM json_to_recordset(%s) AS given({_RECORD})
            ON CONFLICT DO NOTHING RETURNING ref, kind, world_id, at
        ), opened AS (
            INSERT INTO open_order (order_id, world_id, accepted_at)
            SELECT ref, world_id, at FROM line WHERE kind = 'accepted'
        )
        SELECT ref FROM line"""

    def read(self, connection: Connection, orders: Iterable[Order], alone: set[str]) -> FenceSnapshot:
        keys = _keys(orders)
        driver = self._driver(connection)
        locks = [
            f"SELECT {_EXCLUSIVE if world_id in alone else _SHARED}({lock_key(f'fence:{world_id}')})"
            for world_id in keys["worlds"]
        ]
        self._begin(driver, locks)
        found = driver.execute(self._READ, keys).fetchone() or ()
        return _snapshot(
            {
                name: [tuple(row.values()) for row in rows or ()]
                for name, rows in zip(self._SELECTS, found, strict=True)
            }
        )

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        return _lines(
            self._driver(connection).execute(self._SELECTS["earlier"], {"ids": list(ids)}).fetchall()
        )

    def write(self, connection: Connection, lines: Sequence[LogLine]) -> set[str]:
        given = Json([line._asdict() for line in lines])
        return {row[0] for row in self._driver(connection).execute(self._INSERT, (given,)).fetchall()}

    @staticmethod
    def _begin(driver: "psycopg.Connection[tuple[Any, ...]]", first: Sequence[str]) -> None:
        """Begin the transaction with these statements in one round trip.

        The driver would make one for each.
        """
        result = driver.pgconn.exec_(";".join(["BEGIN", *first]).encode())
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise psycopg.OperationalError(result.get_error_message())

    @staticmethod
    def _driver(connection: Connection) -> "psycopg.Connection[tuple[Any, ...]]":
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        return driver
