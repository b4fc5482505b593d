"""Rows and lists of texts that go to a database in one parameter each."""

from pathlib import Path

import pytest
from sqlalchemy import select

from activities.storage.database import Database
from activities.storage.lists import among
from activities.storage.opening import open_database
from activities.storage.tables import PositionRow
from activities.storage.transactions import table_of
from tests.support.postgres import postgres_database

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
        {**about, "symbol": text, "at": "now", "held": number % 3 == 0, "after": after + text}
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
