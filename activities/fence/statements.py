"""The statements of a transaction of the fence, for either database.

Plain SQL in few round trips, because every order pays for them.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from sqlalchemy import Connection

from activities.fence.log_line import LogLine, NewLine
from activities.fence.postgres_statements import PostgresStatements
from activities.fence.snapshot import FenceSnapshot
from activities.fence.sqlite_statements import SqliteStatements
from activities.storage.database import Database
from activities.storage.postgres import PostgresDatabase
from qmtl_sdk.contracts.orders import OrderRequest


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

    def write_last(self, connection: Connection, lines: Sequence[NewLine]) -> set[str]:
        """Do the same after `read`, as the last change of the transaction: this may commit it."""


_POSTGRES = PostgresStatements()
_SQLITE = SqliteStatements()


def statements_of(database: Database) -> FenceStatements:
    """Return the statements of a database."""
    return _POSTGRES if isinstance(database, PostgresDatabase) else _SQLITE


def statements_in(connection: Connection) -> FenceStatements:
    """Return the statements of a connection's database."""
    return _POSTGRES if connection.dialect.name == "postgresql" else _SQLITE
