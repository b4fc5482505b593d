"""Run migrations over the connection that `migrate` passes. Alembic loads this file."""

from alembic import context
from sqlmodel import SQLModel

import activities.storage.tables  # noqa: F401  autogenerate compares with these tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
