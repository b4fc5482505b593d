"""Every query of a loop or a page uses an index, in tables of a million rows.

1. A world is made in which a little of everything has happened, and each table that grows is filled.
2. Loops, activities, requests and pages run over the shipped code, and their statements are recorded.
3. Each statement is planned and carried out again: none may read a whole table that grows, sort it, or read
   more rows than a page has.

What is forgotten is found as well: a table of which nobody said whether it grows, a page or a parameter that
nobody requested, and a function that sends a statement and was not run here.

With `QMTL_PLAN_ROWS=1000000` (`make plans`) the tables have a million rows. Otherwise they have fewer, and
the planner takes them to have a million.
"""

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select

from activities.storage.database import Database
from activities.storage.tables import LedgerRow, PositionRow
from activities.storage.transactions import table_of
from api.auth.route_roles import ROUTES
from qmtl_sdk.contracts.access import Role
from tests.support.many_rows import fill, tables_without_a_size, take_for_big
from tests.support.plan_pages import NO_STATEMENTS, PAGES, SHOWS_LESS
from tests.support.plan_readers import Readers
from tests.support.postgres import postgres_database
from tests.support.query_plans import (
    ROOT,
    Query,
    Recorder,
    faults,
    fence_reads,
    rows_of,
    statement_sites,
    unique,
)

ROWS = int(os.environ.get("QMTL_PLAN_ROWS", "10000"))

NOT_RUN = {
    "activities/fence/sqlite_statements.py": "sent past SQLAlchemy; `fence_reads` takes them as they are",
    "activities/fence/postgres_statements.py": "the same",
    "activities/fence/segments.py": "hourly, a segment of the order log at a time",
    "activities/fence/flattening_rows.py:note_ends": "orders that a venue has just ended, by their ids",
    "activities/ledger/sql.py:remove_old_entries": "hourly, the positions of a segment of the order log",
    "activities/ledger/sql.py:remove_ledger": "to book the ledger of a world anew",
    "activities/ledger/sql.py:ledger_rows": "a chunk at a time, to compare all of it",
    "activities/ledger/sql.py:current_positions": "all of them, to compare them",
    "activities/ledger/exposures.py:totals_of_days": "a chunk of whole keys at a time, to compare them",
    "activities/ledger/exposures.py:number_of_days": "all of them, to compare them",
    "activities/retention/": "hourly, a chunk of the oldest rows at a time; the whole trail, to verify it",
    "activities/graph/sql.py:SqlGraphStore._mark_recompute": "by primary key",
    "activities/graph/sql.py:SqlGraphStore._add_queues": "by primary key",
    "activities/storage/commits.py": "asks for the number of the last commit",
    "activities/storage/database.py:Database._identity": "the only row of a table",
    "activities/storage/log.py": "a file of its own, with a primary key for each read",
    "activities/storage/migrate.py": "the schema",
    "activities/storage/postgres.py": "locks and settings of a connection",
    "activities/storage/sqlite.py": "settings of a connection",
    "activities/storage/write_ahead.py": "a setting of a file",
}
"""Functions, or modules, whose statements are not recorded here, with the reason."""

LOOPS_WITHOUT_STATEMENTS = {"stream": "reads the bus"}


@dataclass
class Recorded:
    """A filled store, the statements that were sent to it, and the answers of its pages by URL."""

    house: Readers
    recorder: Recorder = field(default_factory=Recorder)
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def database(self) -> Database:
        return self.house.database

    def record(self) -> None:
        for name, run in {**self.house.loops(), **self.house.acts()}.items():
            with self.recorder.reading(name):
                run()
        urls = [url for listed in PAGES.values() for url in listed]
        self.answers = asyncio.run(self.house.pages(self.recorder, urls))
        lists = ["/sessions", "/sessions?ended=true", "/worlds"]
        self.answers |= asyncio.run(
            self.house.pages(self.recorder, lists, dict.fromkeys("wx", Role.OPERATOR))
        )

    def queries(self) -> list[Query]:
        return unique(self.recorder.queries) + fence_reads(self.database)

    def faults(
        self,
        prepare: Callable[[Connection], None] = lambda _: None,
        chosen: Callable[[Query], bool] = lambda _: True,
    ) -> list[str]:
        """What is wrong with each chosen statement, after a change of the database that is undone."""
        found = list[str]()
        with self.database._engine.connect() as connection:
            prepare(connection)
            for query in filter(chosen, self.queries()):
                found += [f"{query}\n        {fault}" for fault in faults(connection, query)]
            connection.rollback()
        return found


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    home = tmp_path_factory.mktemp("plans")
    with ExitStack() as stack:
        dsn = f"sqlite:///{home / 'qmtl.db'}"
        if request.param == "postgres":
            server: str = request.getfixturevalue("postgres")
            dsn = stack.enter_context(postgres_database(server, "plans"))
        house = Readers(home, dsn)
        stack.callback(house.close)
        house.live()
        fill(house.database, ROWS)
        take_for_big(house.database, ROWS)
        found = Recorded(house)
        found.record()
        yield found


def test_every_query_of_a_loop_or_a_page_uses_an_index(recorded: Recorded) -> None:
    found = recorded.faults()
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("index", "site"),
    [
        ("session_opened", "SqlSessionStore._listed"),
        ("commit_log_run", "SqlCommitLog.require_lease_holder"),
        # PostgreSQL would read all of the second one in place of the first, and count few rows.
        ("order_log_reason order_log_strategy", "reason=halted: activities/fence/order_lists.py:_verdicts"),
        ("order_log_strategy", "order_lists.py:_verdicts"),
        ("outbox_of_subject", "_superseded"),
    ],
)
def test_a_missing_index_is_found(recorded: Recorded, index: str, site: str) -> None:
    found = recorded.faults(lambda connection: _drop(connection, index))
    assert found, f"nothing needs {index}"
    assert any(site in fault for fault in found), found


def test_the_newest_mark_of_a_symbol_is_one_entry_of_an_index(recorded: Recorded) -> None:
    """All positions of a symbol at an account were read and compared, under the fence.

    Without `position_mark`, PostgreSQL reads all of another index, of which `faults` sees few rows.
    """
    queries = [query for query in recorded.queries() if "newest_marks" in query.site]
    assert queries
    with recorded.database.read() as session:
        connection = session.connection()
        explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        for query in queries:
            rows = connection.exec_driver_sql(f"{explain} {query.statement}", query.parameters)
            plan = "\n".join(str(row) for row in rows)
            assert "position_mark" in plan, plan
            assert "Sort" not in plan, plan
            assert "TEMP B-TREE" not in plan, plan


def _drop(connection: Connection, index: str) -> None:
    for each in index.split():
        connection.exec_driver_sql(f"DROP INDEX {each}")


def test_a_page_loads_no_more_than_it_shows(recorded: Recorded) -> None:
    found = list[str]()
    with recorded.database.read() as session:
        for page, (status, shown) in recorded.answers.items():
            if not isinstance(shown, list) or page in SHOWS_LESS:
                continue
            assert status == 200, page
            for query in unique([item for item in recorded.recorder.queries if item.reader == page]):
                rows = rows_of(session.connection(), query)
                if (
                    rows > 3 * len(shown) + 20
                ):  # an order has a row of its acceptance, its sending and its end
                    found.append(f"{rows} rows for {len(shown)} that are shown: {query}")
    assert not found, "\n".join(found)


def test_every_page_shows_something(recorded: Recorded) -> None:
    """An empty page would read no rows, whatever its statement."""
    empty = [page for page, (_, shown) in recorded.answers.items() if shown == [] and "diff" not in page]
    assert empty == []
    wrong = {page: status for page, (status, _) in recorded.answers.items() if status >= 500}
    assert wrong == {}


def test_no_function_that_sends_a_statement_is_forgotten(recorded: Recorded) -> None:
    run = {query.site for query in recorded.recorder.queries}
    sites = [
        site
        for module in sorted((ROOT / "activities").rglob("*.py"))
        if "migrations" not in module.parts
        for site in statement_sites(module, lambda name: name in ("exec", "execute", "exec_driver_sql"))
    ]
    assert len(sites) > 80
    forgotten = [site for site in sites if site not in run and not any(map(site.startswith, NOT_RUN))]
    assert forgotten == [], "run it in tests/support/plan_readers.py, or say in NOT_RUN why not"


def test_no_table_is_forgotten() -> None:
    assert tables_without_a_size() == []


def test_no_page_and_no_parameter_is_forgotten(recorded: Recorded) -> None:
    paths = {path for method, path in ROUTES if method == "GET"}
    assert paths == set(PAGES) | set(NO_STATEMENTS)
    described = recorded.house.app.openapi()["paths"]
    missing = [
        f"{path}?{parameter['name']}"
        for path, urls in PAGES.items()
        for parameter in described[path]["get"].get("parameters", ())
        if parameter["in"] == "query"
        and not any(re.search(rf"[?&]{parameter['name']}=", url) for url in urls)
    ]
    assert missing == []


def test_no_loop_is_forgotten(recorded: Recorded) -> None:
    gateway = (ROOT / "api/gateway.py").read_text()
    others = "".join(module.read_text() for module in (ROOT / "activities").rglob("*.py"))
    loops = {*re.findall(r'\bstart\("([\w ]+)", ', gateway), *re.findall(r'run_elected\(\S+ "(\w+)"', others)}
    assert {"session expiry", "Gateway lease", "relay", "router"} <= loops
    assert loops <= {*recorded.house.loops(), *LOOPS_WITHOUT_STATEMENTS}


def test_the_paths_of_this_test_exist() -> None:
    for name in NOT_RUN:
        assert Path(ROOT / name.partition(":")[0]).exists()


def test_positions_are_looked_up_in_a_ledger_that_has_just_grown(recorded: Recorded) -> None:
    """Then PostgreSQL knows nothing of its columns, and any index of a strategy seems to find few rows."""
    past = [name for name in recorded.answers if "positions?as_of" in name]
    assert past
    found = recorded.faults(_grow, lambda query: query.reader in past)
    assert not found, "\n".join(found)


def _grow(connection: Connection) -> None:
    """Let a strategy hold many positions of which there are no statistics, in an index that is as tall."""
    for table in map(table_of, (PositionRow, LedgerRow)):
        one: Any = connection.execute(select(table).limit(1)).mappings().one()
        key = {"world_id": "w", "strategy_id": "strategy:w0", "account": "paper", "held": True}
        row = {name: value for name, value in one.items() if name != "seq"} | key
        symbols = [f"G{number}" for number in range(200)]
        named = [{"symbol": symbol, "ref": symbol} for symbol in symbols]
        connection.execute(
            insert(table), [row | {k: v for k, v in name.items() if k in row} for name in named]
        )
    if connection.dialect.name == "postgresql":
        for statement in (
            "ALTER INDEX ledger_position SET (fillfactor = 10)",
            "REINDEX INDEX ledger_position",
            "DELETE FROM pg_statistic WHERE starelid = 'ledger'::regclass",
            "UPDATE pg_class SET reltuples = -1 WHERE oid = 'ledger'::regclass",
        ):
            connection.exec_driver_sql(statement)
