"""Alembic's entry: migrates over the connection that it is handed."""

from alembic import context
from sqlmodel import SQLModel

import activities.storage.tables  # noqa: F401  the tables that a new migration is compared with

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
