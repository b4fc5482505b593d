"""A revoked token is forgotten when it has ended by itself, and is refused before and after."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from activities.access.principals import SqlPrincipalStore
from activities.access.sql import SqlTokenStore
from activities.retention.ages import Ages
from activities.retention.tokens import REVOKED_TOKENS
from activities.settings import RetentionSettings
from activities.storage.database import Database
from activities.storage.tables import ArchiveRow, RebalancingScheduleRow, TokenRow
from activities.storage.transactions import utc_text
from api.auth.keys import KeyRing
from api.auth.tokens import Tokens
from qmtl_sdk.contracts.access import Role, TokenRequest
from qmtl_sdk.contracts.errors import QmtlError
from tests.support.archive_house import NOW, House

DAYS = RetentionSettings().revoked_tokens_days
KIND = REVOKED_TOKENS.name


@pytest.fixture
def house(database: Database, tmp_path: Path) -> House:
    return House(database, tmp_path / "archives")


def add(database: Database, ended: dict[str, float], revoked: bool = True) -> None:
    """Add tokens of ana, by how many days ago each has ended."""
    at = utc_text(NOW - timedelta(days=400))
    with database.write("test", bookkeeping=True) as tx:
        for name, days in ended.items():
            tx.session.add(
                TokenRow(
                    token_id=name,
                    subject="ana",
                    grants="{}",
                    created_by="olga",
                    issuers='["olga"]',
                    created_at=at,
                    expires_at=utc_text(NOW - timedelta(days=days)),
                    revoked_at=at if revoked else None,
                )
            )


def left(house: House) -> set[str]:
    return set(house.sql("SELECT token_id FROM token"))


def test_a_revoked_token_goes_when_it_has_ended_and_no_other_one(house: House) -> None:
    add(house.database, {f"old{number}": DAYS + 1 for number in range(1200)})
    add(house.database, {"valid": -1, "just ended": 0.01, "within the margin": DAYS - 0.1})
    add(house.database, {"not revoked": DAYS + 1}, revoked=False)
    assert house.retention.apply(KIND, NOW, 60.0) == (1200, False)
    assert left(house) == {"valid", "just ended", "within the margin", "not revoked"}
    assert {row["token_id"] for row in house.archived("token")} == {f"old{number}" for number in range(1200)}
    assert house.count(ArchiveRow) == 3, "some at a time"


def test_a_revocation_stays_where_what_a_person_left_would_act_again(house: House) -> None:
    ended: dict[str, float] = {"oidc:old": DAYS + 30, "oidc:newest": DAYS + 20, "of a schedule": DAYS + 90}
    add(house.database, {**ended, "other": DAYS + 10})
    with house.database.write("test", bookkeeping=True) as tx:
        tx.session.add(
            RebalancingScheduleRow(
                name="daily",
                body="",
                set_by="ana",
                token_id="of a schedule",
                issuers="[]",
                live=False,
                set_at=utc_text(NOW),
                state="set",
            )
        )
    assert house.retention.apply(KIND, NOW, 60.0)[0] == 2
    assert left(house) == {"oidc:newest", "of a schedule"}


def test_a_revoked_token_is_refused_whether_it_is_remembered_or_not(house: House) -> None:
    """A forgotten one also by a Gateway whose clock is late, to which it is still in its time."""
    SqlPrincipalStore(house.database).add("ana", "olga")
    store = SqlTokenStore(house.database)
    tokens = Tokens(KeyRing(house.folder / "keys.json"), store, house.database.store_id)
    new = tokens.issue(TokenRequest(subject="ana", grants={"*": Role.READER}), "olga")
    claims = {"aud": "gateway", "sub": "ana", "jti": new.info.token_id, "grants": {"*": "reader"}}
    ended = tokens._sign(claims, -3600)

    def refusal(token: str) -> str:
        with pytest.raises(QmtlError) as caught:
            asyncio.run(tokens.caller(token))
        return caught.value.code

    assert asyncio.run(tokens.caller(new.token)).subject == "ana"
    store.revoke(new.info.token_id, "olga")
    house.retention.apply(KIND, NOW + timedelta(days=29), 60.0)
    assert left(house) == {new.info.token_id}, "it has not ended"
    assert (refusal(new.token), refusal(ended)) == ("E_TOKEN_REVOKED", "E_TOKEN_EXPIRED")
    house.retention.apply(KIND, NOW + timedelta(days=30 + DAYS + 8), 60.0)
    assert left(house) == set()
    assert (refusal(new.token), refusal(ended)) == ("E_TOKEN_REVOKED", "E_TOKEN_EXPIRED")


def test_those_that_have_ended_are_found_by_an_index(house: House) -> None:
    add(house.database, {f"old{number}": DAYS + number for number in range(100)})
    add(house.database, {f"valid{number}": -number for number in range(5000)}, revoked=False)
    with house.database.write("test", bookkeeping=True) as tx:
        tx.connection.exec_driver_sql("ANALYZE")
        dialect = tx.connection.dialect
        query = REVOKED_TOKENS.due(Ages(NOW, DAYS)).limit(500)
        text = query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}).string
        how = "EXPLAIN QUERY PLAN " if dialect.name == "sqlite" else "EXPLAIN "
        plan = str(tx.connection.exec_driver_sql(how + text).fetchall())
    assert "token_revoked" in plan, plan


def test_no_setting_forgets_a_revocation_under_which_a_stream_may_be_open() -> None:
    with pytest.raises(ValueError, match="revoked_tokens_days"):
        RetentionSettings(revoked_tokens_days=1)
