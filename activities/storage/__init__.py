"""The database: transactions with audit and outbox rows, tables, migrations, the audit chain, SQLite logs."""
