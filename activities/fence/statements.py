# ruff: noqa: S608  the statements are made of constants
"""The statements of a transaction of the fence.

Plain SQL in few round trips, because every order pays for them.

The condition of the partial index of `order_log` is written out as in the index: with parameters in its
place, neither database would use the index.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.types.json import Json
from sqlalchemy import Connection

from activities.access.sql import TokenState
from activities.fence.log_line import ACCEPTED, LogLine
from activities.fence.rules import Activation, FenceState, Session
from activities.storage.database import Database
from activities.storage.postgres import LOCK_WAIT_S, PostgresDatabase, lock_key, milliseconds
from qmtl_sdk.contracts.orders import OrderRequest

_FENCE = tuple(FenceState.__dataclass_fields__)

# Milliseconds that a queue waits for the lock of a fence, before another queue gets its thread.
_LOCK_TIMEOUT_MS = 200

# PostgreSQL's SQLSTATE lock_not_available.
_LOCK_NOT_AVAILABLE = b"55P03"


class FenceHeldError(Exception):
    """Other transactions hold the fences of `worlds`."""

    def __init__(self, worlds: Iterable[str]) -> None:
        super().__init__()
        self.worlds = frozenset(worlds)


@dataclass(frozen=True)
class FenceSnapshot:
    """Fences by world, earlier verdicts by order id, activations by world and strategy, sessions by id.

    `router_at` is when an order router last worked; empty where none ever did. `tokens` are states by id.
    """

    fences: dict[str, FenceState]
    earlier: dict[str, LogLine]
    activations: dict[tuple[str, str], Activation]
    sessions: dict[str, Session]
    router_at: str
    tokens: dict[str, TokenState]


class NewLine(NamedTuple):
    """A row for the order log, and what an open order has of it: `quantity` is signed (positive buys)."""

    line: LogLine
    domain: str = ""
    symbol: str = ""
    quantity: str = ""
    price: str = ""


class FenceStatements(Protocol):
    """The statements of one database."""

    def read(
        self, connection: Connection, orders: Iterable[OrderRequest], tokens: set[str], wait: bool
    ) -> FenceSnapshot:
        """Lock the fences of the orders' worlds until the commit, and read everything that the rules need.

        Raises FenceHeldError where a fence is held: with `wait` after 200 ms, otherwise at once.
        """

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        """Read the earlier verdicts of these orders, by order id."""

    def write(self, connection: Connection, lines: Sequence[NewLine]) -> set[str]:
        """Insert orders, the accepted ones also as open orders, and count them. Returns the new ids.

        The earlier row of an id stands.
        """


def statements_of(database: Database) -> FenceStatements:
    """Return the statements of a database."""
    return _PostgresStatements() if isinstance(database, PostgresDatabase) else _SqliteStatements()


def _selects(among: str) -> dict[str, str]:
    """Return the statement of each read. `among` is the database's expression for membership in a list."""
    return {
        "worlds": f"SELECT world_id, {', '.join(_FENCE)} FROM fence WHERE world_id {among.format('worlds')}",
        "earlier": f"SELECT {', '.join(LogLine._fields)} FROM order_log "
        f"WHERE ref {among.format('ids')} AND order_log.kind IN ('accepted', 'refused', 'withheld')",
        "activations": "SELECT world_id, strategy_id, active, mode, EXISTS (SELECT 1 FROM strategy_halt "
        "WHERE strategy_halt.world_id = activation.world_id "
        "AND strategy_halt.strategy_id = activation.strategy_id) AS halted FROM activation "
        f"WHERE world_id {among.format('worlds')} AND strategy_id {among.format('strategies')}",
        "sessions": "SELECT session_id, world_id, strategy_id, execution_domain, expires_at, "
        "ended_at IS NOT NULL AS ended, actor, secret_hash, opened_at "
        f"FROM session WHERE session_id {among.format('sessions')}",
        "tokens": f"SELECT token_id, revoked_at IS NULL AS good FROM token "
        f"WHERE token_id {among.format('tokens')}",
        # A router that was stopped a moment ago counts: the next one may be starting.
        "router": "SELECT max(worked_at) FROM process WHERE name = 'router' AND state <> 'standby'",
    }


def _keys(orders: Iterable[OrderRequest], tokens: set[str]) -> dict[str, list[str]]:
    """Return the sorted ids of worlds, orders, strategies and sessions that the orders name, and tokens."""
    of = list(orders)
    found = {
        "worlds": {o.world_id for o in of},
        "ids": {o.order_id for o in of},
        "strategies": {o.strategy_id for o in of},
        "sessions": {o.session_id for o in of},
        "tokens": tokens,
    }
    return {name: sorted(values) for name, values in found.items()}


def _snapshot(rows: dict[str, list[tuple[Any, ...]]]) -> FenceSnapshot:
    """Build the snapshot from rows by statement. (Any: values of a database's driver.)"""
    return FenceSnapshot(
        {row[0]: FenceState(*row[1:]) for row in rows["worlds"]},
        _lines(rows["earlier"]),
        {(row[0], row[1]): Activation(bool(row[2]), row[3], bool(row[4])) for row in rows["activations"]},
        {
            row[0]: Session(row[1], row[2], row[3], row[4], bool(row[5]), *row[6:9])
            for row in rows["sessions"]
        },
        rows["router"][0][0] or "",
        {row[0]: "good" if row[1] else "revoked" for row in rows["tokens"]},
    )


def _lines(rows: list[tuple[Any, ...]]) -> dict[str, LogLine]:
    return {line.ref: line for line in map(LogLine._make, rows)}


class _SqliteStatements:
    """SQLite: a statement costs a call, not a round trip, and the only writer needs no locks."""

    _SELECTS = _selects("IN (SELECT value FROM json_each(:{}))")
    _INSERT = (
        f"INSERT INTO order_log ({', '.join(LogLine._fields)}) "
        f"VALUES ({', '.join('?' * len(LogLine._fields))}) ON CONFLICT DO NOTHING"
    )
    _OPEN = (
        "INSERT INTO open_order (order_id, world_id, strategy_id, execution_domain, symbol, quantity, price, "
        "epoch, accepted_at, next_at, state, sent_at, acknowledged, filled_quantity, cancel_reason) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'accepted', '', 0, '', '')"
    )
    _COUNT = (
        "INSERT INTO order_count (world_id, kind, reason, orders) VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET orders = orders + excluded.orders"
    )

    def read(
        self, connection: Connection, orders: Iterable[OrderRequest], tokens: set[str], wait: bool
    ) -> FenceSnapshot:
        keys = {name: json.dumps(values) for name, values in _keys(orders, tokens).items()}
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

    def write(self, connection: Connection, lines: Sequence[NewLine]) -> set[str]:
        driver = self._driver(connection)
        new = [given for given in lines if driver.execute(self._INSERT, given.line).rowcount]
        opened = [
            (line.ref, line.world_id, line.strategy_id, *about, line.epoch, line.at, line.at)
            for line, *about in new
            if line.kind == ACCEPTED
        ]
        if opened:
            driver.executemany(self._OPEN, opened)
        counts = Counter((line.world_id, line.kind, line.reason) for line, *_ in new)
        driver.executemany(self._COUNT, [(*key, count) for key, count in counts.items()])
        return {line.ref for line, *_ in new}

    @staticmethod
    def _driver(connection: Connection) -> sqlite3.Connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver


# The columns of a row of the order log, as PostgreSQL reads them from JSON.
_RECORD = ", ".join(f"{name} {'integer' if name == 'epoch' else 'text'}" for name in LogLine._fields)


class _PostgresStatements:
    """PostgreSQL.

    First the locks, then one statement, which reads what was committed before they were granted.
    """

    _SELECTS = _selects("= ANY(%({})s)")
    _READ = "SELECT " + ", ".join(
        f"(SELECT json_agg(found) FROM ({statement}) found)" for statement in _SELECTS.values()
    )
    _INSERT = f"""
        WITH given AS (
            SELECT * FROM json_to_recordset(%s)
            AS given({_RECORD}, domain text, symbol text, quantity text, price text)
        ), line AS (
            INSERT INTO order_log ({", ".join(LogLine._fields)})
            SELECT {", ".join(LogLine._fields)} FROM given
            ON CONFLICT DO NOTHING RETURNING ref, kind, world_id, strategy_id, at, epoch, reason
        ), opened AS (
            INSERT INTO open_order (order_id, world_id, strategy_id, execution_domain, symbol, quantity,
                                    price, epoch, accepted_at, next_at, state, sent_at, acknowledged,
                                    filled_quantity, cancel_reason)
            SELECT ref, line.world_id, line.strategy_id, domain, symbol, quantity, price, line.epoch, line.at,
                   line.at, 'accepted', '', false, '', ''
            FROM line JOIN given USING (ref) WHERE line.kind = 'accepted'
        ), counted AS (
            INSERT INTO order_count (world_id, kind, reason, orders)
            SELECT world_id, kind, reason, count(*) FROM line GROUP BY world_id, kind, reason
            ORDER BY world_id, kind, reason
            ON CONFLICT (world_id, kind, reason)
            DO UPDATE SET orders = order_count.orders + excluded.orders
        )
        SELECT ref FROM line"""

    def read(
        self, connection: Connection, orders: Iterable[OrderRequest], tokens: set[str], wait: bool
    ) -> FenceSnapshot:
        keys = _keys(orders, tokens)
        driver = self._driver(connection)
        self._lock(driver, keys["worlds"], wait)
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

    def write(self, connection: Connection, lines: Sequence[NewLine]) -> set[str]:
        given = Json([{**new.line._asdict(), **new._asdict(), "line": None} for new in lines])
        return {row[0] for row in self._driver(connection).execute(self._INSERT, (given,)).fetchall()}

    @staticmethod
    def _lock(driver: "psycopg.Connection[tuple[Any, ...]]", worlds: Sequence[str], wait: bool) -> None:
        """Begin the transaction and lock the worlds' fences in one round trip.

        The driver would make one for each statement.
        """
        keys = [lock_key(f"fence:{world_id}") for world_id in worlds]
        if wait:
            locks = [f"SELECT pg_advisory_xact_lock({key})" for key in keys]
            statements = [
                "BEGIN",
                f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}",
                *locks,
                f"SET LOCAL lock_timeout = '{milliseconds(LOCK_WAIT_S)}'",
            ]
        else:
            tries = ", ".join(f"pg_try_advisory_xact_lock({key})" for key in keys)
            statements = ["BEGIN", f"SELECT {tries}"]
        result = driver.pgconn.exec_(";".join(statements).encode())
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            if result.error_field(DiagnosticField.SQLSTATE) == _LOCK_NOT_AVAILABLE:
                raise FenceHeldError(worlds)
            raise psycopg.OperationalError(result.get_error_message())
        if not wait:
            held = [world for column, world in enumerate(worlds) if result.get_value(0, column) != b"t"]
            if held:
                raise FenceHeldError(held)

    @staticmethod
    def _driver(connection: Connection) -> "psycopg.Connection[tuple[Any, ...]]":
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        return driver
