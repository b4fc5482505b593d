"""A store with as many rows as a long life of it leaves.

Each table that grows is filled from one row that shipped code wrote, by one statement in the database. A
table is either here or in `SMALL`, so that a new one is not forgotten.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text
from sqlmodel import SQLModel

from activities.storage.database import Database

SMALL = {
    "store_identity": "one row",
    "process": "a row for each process; those that are gone are deleted",
    "gateway": "a row for each Gateway of this moment, and one for each that was killed",
    "principal": "a row for each person or service that an owner registered",
    "world": "a row for each world that an operator created",
    "fence": "a row for each world",
    "policy": "a row for each version that an operator uploaded",
    "edge_override": "a row for each edge that an operator closed",
    "allocation": "a row for each world",
    "rebalancing_schedule": "a row for each schedule that an operator set, at most 100",
    "strategy_halt": "a row for each strategy that is halted now",
    "reconciliation": "a row for each account of a broker",
    "flatten": "a row for each request of an operator to flatten",
    "flattening": "a row for each strategy whose positions are being closed now",
    "order_seal": "a row for each day in which a world had orders",
    "archive": "a row for each chain or world, and for 100 rows of other tables, read by its index",
    "order_count": "a row for each world and reason",
    "dead_letter": "a row for each event that an operator has not handled yet",
    "cache_hit": "a row for each defect; each halts its strategy until an operator resumes it",
}
"""Tables with few rows, with the reason: a query may read all of them."""

BIG = 1_000_000
"""Rows of each table that grows, as the planner of the database has them."""

STRATEGIES = 200
"""Strategies of a world."""

_STRATEGY = f"'strategy:s' || (n % {STRATEGIES})"
# The world of most rows has `STRATEGIES` strategies, and so has each of the others.
_WORLD = f"CASE WHEN n <= {STRATEGIES} THEN 'w' ELSE 'w' || (n / {STRATEGIES}) END"
_DOMAIN = "'backtest'"
_OF_STRATEGY = {"world_id": _WORLD, "strategy_id": _STRATEGY, "body": "replace({body}, {old}, {strategy})"}
_OF_RUN = {
    "run_id": "'r' || n",
    "strategy_id": _STRATEGY,
    "body": "replace(replace({body}, {old}, {strategy}), one.run_id, 'r' || n)",
}

# The columns of a table that differ between its rows, as SQL of the row's number `n`, and of columns of the
# row `one` that is copied. Whatever is not named is as in that row.
GROWING: dict[str, dict[str, str]] = {
    "audit": {"number": "one.number + n", "at": "{at}", "correlation_id": "'r' || n"},
    "audit_head": {"chain": "'c' || n"},
    "outbox": {
        "event_id": "'e' || n",
        "at": "{at}",
        "subject": "'s' || (n % 50)",
        "subject_hash": "'s' || (n % 50)",
        "published_at": "CASE WHEN n > {rows} - 5 THEN NULL ELSE {at} END",
    },
    "token": {
        "token_id": "'t' || n",
        "subject": "'p' || (n % 50)",
        "created_at": "{at}",
        "expires_at": "{at}",
        "revoked_at": "CASE WHEN n % 10 = 0 THEN {at} END",
    },
    "queue": {
        "topic": "'t' || n",
        "node_id": "'node' || n",
        "world_id": _WORLD,
        "execution_domain": _DOMAIN,
        "created_at": "{at}",
        "dropped_at": "CASE WHEN n > 500 THEN {at} END",
    },
    "queue_tag": {
        "topic": "'t' || n",
        "tag": "CASE WHEN n % 2 = 0 THEN 'price' ELSE 'tag' || n END",
        "world_id": _WORLD,
        "execution_domain": _DOMAIN,
    },
    "tag_query": {
        "node_id": "'node' || n",
        "world_id": "CASE WHEN n <= 5 THEN 'w' ELSE 'w' || n END",
        "execution_domain": _DOMAIN,
    },
    "session": {
        "session_id": "'s' || n",
        "strategy_id": _STRATEGY,
        "opened_at": "{at}",
        "expires_at": "{at}",
        "ended_at": "{at}",
        "newest_bar": "{at}",
    },
    "graph_node": {"node_id": "'node' || n", "first_strategy": _STRATEGY},
    "graph_edge": {"parent": "'node' || n", "child": "'node' || (n + 1)"},
    "graph_strategy": {"strategy_id": "'strategy:s' || n"},
    "graph_diff": {"run_id": "'r' || n"},
    "sentinel": {"sentinel_id": "'v' || n", "world_id": _WORLD, "strategy_id": _STRATEGY},
    "binding": {"world_id": _WORLD, "strategy_id": _STRATEGY, "name": "'S' || n", "created_at": "{at}"},
    "world_node": {"node_id": "'node' || n", "world_id": _WORLD},
    "commit_log": {
        "idempotency_key": "'k' || n",
        "strategy_id": _STRATEGY,
        "run_id": "'r' || n",
        "lease_id": "'r' || n || ':1'",
        "received_at": "{at}",
    },
    "run_context": {**_OF_RUN, "created_at": "{at}"},
    "evidence": {**_OF_RUN, "content_hash": "'h' || n", "created_at": "{at}"},
    "validation": {"eval_key": "'v' || n", "node_id": "'node' || n"},
    "outcome": {**_OF_RUN, "created_at": "{at}"},
    "activation": {
        **_OF_STRATEGY,
        "active": "n <= 100",
        "mode": "CASE WHEN n <= 100 THEN 'paper' ELSE '' END",
    },
    "ack": {"sequence": "one.sequence + n / 10", "holder": "'s' || n"},
    "order_log": {
        "at": "{at}",
        "kind": "CASE WHEN n % 9000 = 0 THEN 'refused' WHEN n % 3 = 0 THEN 'accepted' "
        "WHEN n % 3 = 1 THEN 'sent' ELSE 'filled' END",
        "ref": "'o' || (n / 3)",
        "strategy_id": _STRATEGY,
        "reason": "CASE WHEN n % 9000 = 0 THEN 'halted' ELSE '' END",
        "body": "CASE WHEN n % 3 = 0 THEN {body} ELSE '' END",
    },
    "ledger": {
        "world_id": _WORLD,
        "strategy_id": _STRATEGY,
        "at": "{at}",
        "symbol": "'S' || n",
        "ref": "'fill:' || n",
        "held": "n % 10 = 0",
    },
    "position": {
        "world_id": _WORLD,
        "strategy_id": _STRATEGY,
        "at": "{at}",
        "marked_at": "{at}",
        "symbol": "'S' || n",
        "held": "n % 10 = 0",
    },
    "target": {
        "world_id": _WORLD,
        "strategy_id": _STRATEGY,
        "symbol": "'S' || n",
    },
    "exposure": {
        "world_id": _WORLD,
        "strategy_id": f"CASE WHEN n % 10 = 0 THEN '' ELSE {_STRATEGY} END",
        "account": "'a' || n",
    },
    "exposure_day": {
        "world_id": _WORLD,
        "strategy_id": f"CASE WHEN n % 10 = 0 THEN '' ELSE {_STRATEGY} END",
        "account": "'a' || n",
        "day": "substr({at}, 1, 10)",
    },
    "open_order": {
        "order_id": "'o' || n",
        "world_id": _WORLD,
        "strategy_id": _STRATEGY,
        "symbol": "'S' || n",
        "state": "'sent'",
        "next_at": "CASE WHEN n % 10000 = 0 THEN one.next_at ELSE '9999' END",
    },
    "decision": {"created_at": "{at}"},
    "decision_inputs": {"decision_seq": "one.decision_seq + n"},
    "evaluation_request": {"request_id": "'q' || n", "decision_seq": "one.decision_seq + n"},
    "hysteresis": {"world_id": _WORLD, "strategy_id": _STRATEGY},
    "apply": {
        "run_id": "'r' || n",
        "seq": "one.seq + n",
        "requested_at": "{at}",
        "ended_at": "{at}",
        "outcome": "'completed'",
    },
    "apply_step": {"run_id": "'r' || n", "started_at": "{at}"},
    "rebalancing": {
        "run_id": "'r' || n",
        "requested_at": "{at}",
        "locked_at": "{at}",
        "ended_at": "{at}",
        "outcome": "'completed'",
    },
    "rebalancing_trade": {
        "run_id": "'r' || (n / 50)",
        "number": "n % 50",
        "strategy_id": _STRATEGY,
        "order_id": "'o' || n",
        "state": "'filled'",
    },
    "rule_change": {"change_id": "'c' || n", "requested_at": "{at}", "state": "'expired'"},
    "approval": {"approval_id": "'a' || n", "subject": "'r' || n", "at": "{at}", "read_at": "{at}"},
}

# Tables with as many rows for each world.
_OF_WORLDS = tuple(table for table, columns in GROWING.items() if columns.get("world_id") == _WORLD)

# The row to copy, where it is not any row.
_COPIED = {
    "order_log": "kind = 'accepted'",
    "audit": "chain = 'w' AND number = (SELECT max(number) FROM audit WHERE chain = 'w')",
    "apply": "ended_at IS NOT NULL",
    "decision_inputs": "decision_seq = (SELECT max(decision_seq) FROM decision_inputs)",
}

# Columns that only rows near both ends need: pages show them, and a million plans would fill the disk.
_LONG = ("body", "plan", "snapshot", "dag", "ack", "before", "after", "data", "report")
_SHOWN = 3500


def fill(database: Database, rows: int) -> None:
    """Fill each table that grows with `rows` rows of the past year, oldest first."""
    for table in GROWING:  # each in a transaction of its own: together they would fill the disk with a log
        with database.write("test", bookkeeping=True) as tx:
            tx.connection.execute(text(_insert(tx.connection, table, rows).replace(":", r"\:")))
    with database.write("test", bookkeeping=True) as tx:
        letters = (
            "INSERT INTO dead_letter (seq, reason, at) SELECT seq, 'x', at FROM outbox WHERE subject = 's1'"
        )
        tx.connection.exec_driver_sql(f"{letters} ORDER BY seq LIMIT 9")
        newest = "SELECT max(number) FROM audit WHERE chain = 'w'"
        tx.connection.exec_driver_sql(f"UPDATE audit_head SET number = ({newest}) WHERE chain = 'w'")


def _insert(connection: Connection, table: str, rows: int) -> str:
    """Return the statement that fills a table."""
    sqlite = connection.dialect.name == "sqlite"
    begin, step = datetime.now(UTC) - timedelta(days=365), 364 * 86400 / rows
    second = f"({begin.timestamp():.0f} + n * {step:f})"
    at = (
        f"strftime('%Y-%m-%dT%H:%M:%f000+00:00', {second}, 'unixepoch')"
        if sqlite
        else f"to_char(to_timestamp({second}) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')"
    )
    strategy = "strategy:w0"
    values = {
        name: sql.format(at=at, rows=rows, body="one.body", old=f"'{strategy}'", strategy=_STRATEGY)
        for name, sql in GROWING[table].items()
    }
    # A number that the database gives is left out: PostgreSQL's would be given again.
    columns = [
        column.name
        for column in SQLModel.metadata.tables[table].columns
        if not (column.primary_key and column.autoincrement is True)
    ]
    if unknown := set(values) - set(columns):
        raise AssertionError(f"{table} has no {unknown}")
    expressions = []
    for name in columns:
        sql = values.get(name, f"one.{name}")
        if name in _LONG:
            sql = f"CASE WHEN n <= {_SHOWN} OR n > {rows - _SHOWN} THEN {sql} ELSE '' END"
        expressions.append(sql)
    first = "ORDER BY CASE WHEN world_id = 'w' THEN 0 ELSE 1 END" if "world_id" in columns else ""
    source = f"(SELECT * FROM {table} WHERE {_COPIED.get(table, '1 = 1')} {first} LIMIT 1) AS one"
    counted = (
        f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows}) "
        if sqlite
        else ""
    )
    numbers = "numbers" if sqlite else f"generate_series(1, {rows}) AS numbers(n)"
    listed = ", ".join(f'"{name}"' for name in columns)
    return f"{counted}INSERT INTO {table} ({listed}) SELECT {', '.join(expressions)} FROM {source}, {numbers}"


def take_for_big(database: Database, rows: int) -> None:
    """Let the planner take each table for one of `BIG` rows.

    SQLite does so without statistics, which QMTL never collects: to its planner, a table has 1,048,576 rows.
    PostgreSQL knows the density of each table and index, and multiplies it by the pages that there are.
    """
    with database.write("test", bookkeeping=True) as tx:
        connection = tx.connection
        if connection.dialect.name == "sqlite":
            found = connection.exec_driver_sql(
                "SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_stat1'"
            )
            assert found.scalar_one() == 0, "QMTL collects statistics by now: the test must as well"
            return
        for table in _OF_WORLDS:
            connection.exec_driver_sql(
                f"ALTER TABLE {table} ALTER COLUMN world_id SET (n_distinct = -{1 / STRATEGIES:f})"
            )
        connection.exec_driver_sql("ANALYZE")
        if rows < BIG:
            # More rows are more worlds, not more rows in each: none has a share that grows.
            connection.execute(
                text(
                    "UPDATE pg_statistic SET stakind1 = 0 FROM pg_attribute WHERE attrelid = starelid "
                    "AND attnum = staattnum AND attname = 'world_id' AND stakind1 = 1 "
                    "AND starelid::regclass::text = ANY(:tables)".replace("::", r"\:\:")
                ),
                {"tables": list(_OF_WORLDS)},
            )
            for table in GROWING:
                connection.execute(
                    text(
                        "UPDATE pg_class SET reltuples = reltuples * :times WHERE oid IN ("
                        "SELECT to_regclass(:table) UNION ALL "
                        "SELECT indexrelid FROM pg_index WHERE indrelid = to_regclass(:table))"
                    ),
                    {"times": BIG / rows, "table": table},
                )


def tables_without_a_size() -> list[str]:
    """List the tables that are neither said to grow nor to be small."""
    return sorted(set(SQLModel.metadata.tables) - set(GROWING) - set(SMALL))
