"""A migrated PostgreSQL database that many tests use, one after the other, each of them empty.

To create, migrate and drop one takes half a second of a core: its 800 files more than anything else.
"""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import Connection, text

from tests.support.migrated import migrate_postgres
from tests.support.postgres import administrator, postgres_database

# Differs where a test has changed a column, a trigger, an index or a function.
_SCHEMA = text(
    """
    SELECT md5(string_agg(part, ',' ORDER BY part)) FROM (
        SELECT concat_ws(' ', oid, relname, relkind, reloptions) AS part
        FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT concat_ws(' ', attrelid, attname, atttypid, attnotnull, attoptions)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0
        UNION ALL SELECT concat_ws(' ', oid, tgname, tgenabled) FROM pg_trigger
        UNION ALL SELECT concat_ws(' ', oid, proname, prosrc)
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    ) parts
    """
)
_TABLES = text(
    "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' "
    "AND relname <> 'alembic_version' ORDER BY relname"
)
_END_OTHERS = text(
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
_RESTART = text("SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'")


class ReusedDatabase:
    """A database on a server. `empty` gives it to the next test."""

    def __init__(self, server: str, stack: ExitStack) -> None:
        """Take the server's URI, and a stack that drops the database in the end."""
        self._server = server
        self._mine = ExitStack()
        self._uri = ""
        self._schema = ""
        self._tables: list[str] = []
        stack.callback(lambda: self._mine.close())

    def empty(self) -> str:
        """Remove what the test before left, or make the database anew where it changed the schema.

        Returns the database's URI. Nobody else is connected, and no row or lock of theirs is left.
        """
        if not self._uri or not self._emptied():
            self._mine.close()
            self._mine = ExitStack()
            self._uri = self._mine.enter_context(
                postgres_database(self._server, f"reused_{uuid.uuid4().hex}")
            )
            migrate_postgres(self._uri)
            with self._connected() as connection:
                self._schema = connection.execute(_SCHEMA).scalar_one()
                self._tables = list(connection.execute(_TABLES).scalars())
        return self._uri

    def _emptied(self) -> bool:
        with self._connected() as connection:
            connection.execute(_END_OTHERS)
            if connection.execute(_SCHEMA).scalar_one() != self._schema:
                return False
            filled = " UNION ALL ".join(
                f"SELECT '{table}' WHERE EXISTS (SELECT FROM \"{table}\")" for table in self._tables
            )
            # Some tables refuse to lose rows, by triggers that a replica does not have.
            connection.execute(text("SET session_replication_role = replica"))
            for table in connection.execute(text(filled)).scalars().all():
                connection.execute(text(f'DELETE FROM "{table}"'))
            connection.execute(_RESTART)
        return True

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        engine = administrator(self._uri)
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()
