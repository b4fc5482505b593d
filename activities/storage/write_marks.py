"""Whether a transaction has changed rows: one that has, and records no change, is a fault."""

from sqlalchemy import Connection, Engine, event

# The key under which a connection notes that its transaction changed rows.
_WROTE = "qmtl_wrote"


def watch_writes(engine: Engine) -> None:
    """Note on a connection that a statement changed rows.

    Statements with ON CONFLICT DO NOTHING are left out: `insert_new_values` knows whether it inserted rows.
    """

    def after(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if (
            statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE")
            and "ON CONFLICT DO NOTHING" not in statement
        ):
            connection.info[_WROTE] = True

    def begin(connection: Connection) -> None:
        connection.info.pop(_WROTE, None)

    event.listen(engine, "after_cursor_execute", after)
    event.listen(engine, "begin", begin)


def mark_write(connection: Connection) -> None:
    """Note that a statement changed rows which `watch_writes` cannot tell."""
    connection.info[_WROTE] = True


def take_write_mark(connection: Connection) -> bool:
    """Return whether the transaction changed rows, and clear the mark."""
    return bool(connection.info.pop(_WROTE, False))
