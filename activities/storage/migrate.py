"""Migrations, run when a process opens the database. A database that is newer than this code is refused."""

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, inspect, text

from qmtl_sdk.contracts.errors import QmtlError

if TYPE_CHECKING:
    from alembic.config import Config

_FOLDER = Path(__file__).parent / "migrations"
_VERSION_TABLE = "alembic_version"


def migrate(engine: Engine) -> None:
    """Bring the database to this version. Raises QmtlError (E_DATABASE_NEWER). The caller keeps other processes from doing the same."""
    with engine.connect() as connection:
        there = inspect(connection).has_table(_VERSION_TABLE)
        current = (
            connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar_one_or_none()  # noqa: S608  a name of ours
            if there
            else None
        )
    known = _revisions()
    if current is not None and current not in known:
        raise QmtlError(
            "E_DATABASE_NEWER",
            f"the database is at version {current}, which this QMTL does not know",
            "upgrade QMTL, or name another database",
        )
    if current == known[-1]:
        return
    from alembic import command  # some megabytes, for the one start that has something to migrate

    config = configuration()
    with engine.connect().execution_options(qmtl_purpose="write") as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def configuration() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    return config


@lru_cache(maxsize=1)
def _revisions() -> list[str]:
    """The versions that this code knows, oldest first: a migration's file begins with its own."""
    return sorted(
        found[1]
        for path in (_FOLDER / "versions").glob("*.py")
        if (found := re.match(r"(\d{4})_", path.name))
    )
