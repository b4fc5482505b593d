"""Migrations, run when a process opens the database.

A database whose version this code does not know is refused: a newer QMTL made it, or one from before the
first release.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, inspect, text

from qmtl_sdk.contracts.errors import QmtlError

if TYPE_CHECKING:
    from alembic.config import Config

_FOLDER = Path(__file__).parent / "migrations"


def migrate(engine: Engine) -> None:
    """Migrate the database to this version. The caller makes sure that no other process does so meanwhile.

    Raises QmtlError: E_DATABASE_NEWER where this code does not know the version of the database.
    """
    with engine.connect() as connection:
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
    if current == known[-1]:
        return
    # Imported here because it costs megabytes, and only a start that migrates needs it.
    from alembic import command

    config = configuration()
    with engine.connect().execution_options(qmtl_purpose="write") as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


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
