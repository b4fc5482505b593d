"""Migrations, run when a process opens the database.

A database whose version this code does not know is refused: a newer QMTL made it, or one from before the
first release. So is one that lacks a table or a column: until the first release, the schema of one version
changes in place.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text
from sqlmodel import SQLModel

from qmtl_sdk.contracts.errors import QmtlError

if TYPE_CHECKING:
    from alembic.config import Config

_FOLDER = Path(__file__).parent / "migrations"


def is_current(connection: Connection) -> bool:
    """Return whether the database is of this version, so that nothing is to be migrated.

    Raises QmtlError: E_DATABASE_NEWER where this code does not know the version of the database.
    """
    current = None
    if inspect(connection).has_table("alembic_version"):
        current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    known = _revisions()
    if current is not None and current not in known:
        raise QmtlError(
            "E_DATABASE_NEWER",
            f"the database is at version {current}, which this QMTL does not know: a newer QMTL made it, "
            "or one from before the first release",
            "upgrade QMTL, or use another database",
        )
    if current != known[-1]:
        return False
    _require_schema(connection)
    return True


def migrate(engine: Engine) -> None:
    """Migrate the database to this version. The caller makes sure that no other process does so meanwhile.

    Raises QmtlError as `is_current`.
    """
    with engine.connect() as connection:
        if is_current(connection):  # another process has just done it
            return
    # Imported here because it costs megabytes, and only a start that migrates needs it.
    from alembic import command

    config = configuration()
    with engine.connect().execution_options(qmtl_purpose="write") as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def _require_schema(connection: Connection) -> None:
    """Check that the database has every table and column of this code.

    Raises QmtlError (E_DATABASE_NEWER).
    """
    found = {
        (table, column["name"])
        for (_, table), columns in inspect(connection).get_multi_columns().items()
        for column in columns
    }
    missing = sorted(
        f"{table.name}.{column.name}"
        for table in SQLModel.metadata.tables.values()
        for column in table.columns
        if (table.name, column.name) not in found
    )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise QmtlError(
            "E_DATABASE_NEWER",
            f"the database was made by another commit of QMTL: it lacks {missing[0]}{more}",
            "use that commit, or another home with a new database",
        )


def configuration() -> "Config":
    """Configure Alembic for the folder of migrations."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    return config


@lru_cache(maxsize=1)
def _revisions() -> list[str]:
    """List the versions that this code knows, oldest first.

    The file of `schema_0001` begins with `0001_`. (Versions from before the first release were bare numbers.)
    """
    return sorted(
        f"schema_{found[1]}"
        for path in (_FOLDER / "versions").glob("*.py")
        if (found := re.match(r"(\d{4})_", path.name))
    )
