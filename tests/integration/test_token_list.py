"""The list of tokens comes in pages, newest first, however many there are."""

from datetime import UTC, datetime, timedelta

import pytest

from activities.access.sql import SqlTokenStore
from activities.storage.database import Database
from activities.storage.tables import TokenRow
from qmtl_sdk.contracts.access import Role, TokenInfo
from qmtl_sdk.contracts.errors import QmtlError

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
MANY = 2000


def token(number: int) -> TokenRow:
    """A token. Two at a time were created at once; every tenth is for the world `w`."""
    created = BEGIN + timedelta(minutes=number // 2)
    return TokenRow(
        token_id=f"t{number:05d}",
        subject="ana",
        grants='{"w":"author"}' if number % 10 == 0 else '{"x":"author"}',
        created_by="olga",
        issuers="[]",
        created_at=created.isoformat(timespec="microseconds"),
        expires_at=(created + timedelta(days=30)).isoformat(timespec="microseconds"),
    )


@pytest.fixture
def store(database: Database) -> SqlTokenStore:
    with database.write("seed", bookkeeping=True) as tx:
        tx.session.add_all([token(number) for number in range(MANY)])
    return SqlTokenStore(database)


def in_w(item: TokenInfo) -> bool:
    return item.grants == {"w": Role.AUTHOR}


def test_pages_hold_every_token_once_newest_first(store: SqlTokenStore) -> None:
    found: list[str] = []
    after = None
    while page := store.page(lambda _: True, 300, after):
        assert len(page) <= 300
        found += [item.token_id for item in page]
        after = found[-1]
    assert found == [f"t{number:05d}" for number in reversed(range(MANY))]


def test_a_page_is_filled_with_what_the_caller_may_see(store: SqlTokenStore) -> None:
    first = store.page(in_w, 5)
    assert [item.token_id for item in first] == ["t01990", "t01980", "t01970", "t01960", "t01950"]
    (next_one,) = store.page(in_w, 1, first[-1].token_id)
    assert next_one.token_id == "t01940"


def test_a_place_that_is_no_token_is_refused(store: SqlTokenStore) -> None:
    with pytest.raises(QmtlError, match="E_TOKEN_UNKNOWN"):
        store.page(lambda _: True, 5, "nobody")
