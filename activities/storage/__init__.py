"""The database that the stores share: transactions with their audit and outbox rows, migrations, the writers' queue."""
