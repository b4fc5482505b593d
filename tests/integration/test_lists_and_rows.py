"""Rows and lists of texts that go to a database in one parameter each."""

from pathlib import Path

import pytest
from sqlalchemy import select

from activities.ledger.sql import positions_of
from activities.storage.database import Database
from activities.storage.lists import among, among_keys
from activities.storage.opening import open_database
from activities.storage.tables import PositionRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.ledger import Position, PositionKey
from tests.support.postgres import postgres_database
from tests.support.statements import statements

_position = table_of(PositionRow)
ODD = ['"', "\\", "{}", "{a,b}", "NULL", "null", "", " ", "a,b", "'", '\\"', "%s", ":x", "ä€𝄞", "\n\t", "$1"]


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "sqlite":
        found = open_database(f"sqlite:///{tmp_path / 'qmtl.db'}")
        yield found
        found.close()
        return
    with postgres_database(request.getfixturevalue("postgres"), "rows") as dsn:
        found = open_database(dsn)
        yield found
        found.close()


def rows(after: str) -> list[dict[str, object]]:
    about = {"world_id": "w", "strategy_id": "s", "account": "a"}
    return [
        {
            **about,
            "symbol": text,
            "at": "now",
            "marked_at": "now",
            "held": number % 3 == 0,
            "after": after + text,
        }
        for number, text in enumerate(ODD)
    ]


def stored(database: Database) -> list[dict[str, object]]:
    with database.read() as session:
        found = session.connection().execute(select(_position)).mappings()
        return sorted((dict(row) for row in found), key=lambda row: ODD.index(row["symbol"]))


def test_many_rows_are_stored_and_replaced_as_they_are(database: Database) -> None:
    with database.write("test", bookkeeping=True) as tx:
        tx.insert_all(_position, rows("first"))
    assert stored(database) == rows("first")
    with database.write("test", bookkeeping=True) as tx:
        tx.upsert_values(_position, rows("second"))
    assert stored(database) == rows("second")


def test_rows_of_a_list_are_found_whatever_its_texts(database: Database) -> None:
    with database.write("test", bookkeeping=True) as tx:
        tx.insert_all(_position, rows(""))
    with database.read() as session:
        for wanted in (ODD, ODD[:1], ODD[1::2], [], ["none"]):
            found = session.connection().execute(
                select(_position.c.symbol).where(among(_position.c.symbol, wanted))
            )
            assert sorted(found.scalars()) == sorted(set(wanted) & set(ODD))


def test_rows_of_keys_are_found_whatever_their_texts(database: Database) -> None:
    with database.write("test", bookkeeping=True) as tx:
        tx.insert_all(_position, rows(""))
        tx.insert_all(_position, [{**row, "account": row["symbol"] + "2"} for row in rows("")])
    columns = [_position.c[name] for name in ("strategy_id", "account", "symbol")]
    with database.read() as session:
        for symbols in (ODD, ODD[:1], ODD[1::2], []):
            wanted = [("s", text + "2", text) for text in symbols]
            others = [("s", "a", "none"), ("other", "a", ODD[0]), ("s", ODD[0], ODD[1])]
            query = select(*columns).where(among_keys(columns, wanted + others))
            assert sorted(map(tuple, session.connection().execute(query))) == sorted(wanted)


def test_positions_of_many_strategies_and_accounts_are_read_by_one_statement(database: Database) -> None:
    held = {"world_id": "w", "at": "now", "marked_at": "", "held": True, "after": "{}"}
    keys = [PositionKey(strategy, account, "A") for strategy in ("s1", "s2", "s3") for account in ("a", "b")]
    with database.write("test", bookkeeping=True) as tx:
        tx.insert_all(_position, [{**held, **key._asdict()} for key in keys])
        tx.insert_all(_position, [{**held, **keys[0]._asdict(), "world_id": "v"}])
    with database.read() as session, statements() as sent:
        connection = session.connection()
        found = positions_of(connection, "w", [*keys[1:], PositionKey("s1", "c", "A"), keys[1]])
        assert found == {key: ("now", Position()) for key in keys[1:]}
        assert positions_of(connection, "w", []) == {}
    assert len([each for each in sent if "position" in each[0]]) == 1
