"""Principals, and who has issued the token of an approval, over each database."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from activities.access.principals import SqlPrincipalStore
from activities.access.sql import SqlTokenStore
from activities.storage.database import Database
from api.auth.keys import KeyRing
from api.auth.tokens import Tokens
from qmtl_sdk.contracts.access import RESERVED, NewToken, Role, TokenInfo, TokenRequest
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from tests.support import ROOT
from tests.support.desk import Desk


class People:
    """Principals and their tokens."""

    def __init__(self, database: Database, home: Path) -> None:
        self.principals = SqlPrincipalStore(database)
        self.store = SqlTokenStore(database)
        self.tokens = Tokens(KeyRing(home / "keys.json"), self.store, database.store_id)

    def issue(self, subject: str, created_by: str, issuers: Sequence[str] = ()) -> NewToken:
        wanted = TokenRequest(subject=subject, grants={"*": Role.OPERATOR})
        return self.tokens.issue(wanted, created_by, issuers)


@pytest.fixture
def people(database: Database, tmp_path: Path) -> People:
    return People(database, tmp_path)


def refused(code: str) -> "pytest.RaisesExc[QmtlError]":
    return pytest.raises(QmtlError, match=code)


def test_a_token_takes_a_registered_principal(people: People) -> None:
    with refused("E_PRINCIPAL_UNKNOWN"):
        people.issue("bob", "olga")
    assert people.principals.add("bob", "olga") == people.principals.add("bob", "ben")
    assert people.issue("bob", "olga").info.issuers == ("olga",)


def test_whoever_is_disabled_has_no_valid_token_and_gets_none(people: People) -> None:
    people.principals.add("bob", "olga")
    people.principals.add("carl", "olga")
    mine, others = people.issue("bob", "olga"), people.issue("carl", "olga")
    assert asyncio.run(people.tokens.caller(mine.token)).subject == "bob"
    assert people.principals.disable("bob", "olga") == people.principals.disable("bob", "ben")
    with refused("E_TOKEN_REVOKED"):
        asyncio.run(people.tokens.caller(mine.token))
    with refused("E_PRINCIPAL_DISABLED"):
        people.issue("bob", "olga")
    assert asyncio.run(people.tokens.caller(others.token)).subject == "carl"
    assert people.principals.add("bob", "ben").disabled_at is None
    with refused("E_TOKEN_REVOKED"):
        asyncio.run(people.tokens.caller(mine.token))
    people.issue("bob", "olga")
    people.principals.disable("bob", "olga")
    people.principals.add_if_new("bob", "system")
    with refused("E_PRINCIPAL_DISABLED"):
        people.issue("bob", "olga")


def test_a_token_that_ended_a_week_ago_is_forgotten_at_the_next(people: People) -> None:
    """An identity provider gives each person many a day: the register grew for ever."""
    people.principals.add("bob", "olga")
    for name, days in (("old", 8), ("recent", 6)):
        end = datetime.now(UTC) - timedelta(days=days)
        ended = TokenInfo(
            token_id=name,
            subject="bob",
            grants={"*": Role.READER},
            created_by="bob",
            issuers=("provider",),
            created_at=end,
            expires_at=end,
        )
        people.store.add(ended)
    new = people.issue("bob", "olga").info
    assert {item.token_id for item in people.store.page(lambda _: True, 10)} == {"recent", new.token_id}


def test_nobody_acts_under_a_name_of_the_system(people: People) -> None:
    for name in ("system", "Relay", "TEMPORAL"):
        with refused("E_PRINCIPAL_RESERVED"):
            people.principals.add(name, "olga")


def test_what_a_person_issues_to_themselves_ends_with_the_token_it_was_issued_with(people: People) -> None:
    """A token of five minutes became one of a year, which outlived its person's leave."""
    people.principals.add("bob", "olga")
    people.principals.add("carl", "olga")
    first = people.issue("bob", "olga").info

    def own(parent: TokenInfo) -> NewToken:
        wanted = TokenRequest(subject="bob", grants={"*": Role.OPERATOR}, expires_in_s=366 * 86_400)
        return people.tokens.issue(wanted, "bob", parent.issuers, parent)

    second = own(first)
    third = own(second.info)
    assert second.info.expires_at == third.info.expires_at == first.expires_at
    other, others = people.issue("bob", "olga"), people.issue("carl", "bob")
    assert people.store.revoke(first.token_id, "olga").revoked_at is not None
    for token in (second, third):
        with refused("E_TOKEN_REVOKED"):
            asyncio.run(people.tokens.caller(token.token))
    with refused("E_TOKEN_REVOKED"):
        own(second.info)
    for token in (other, others):
        assert asyncio.run(people.tokens.caller(token.token))


def test_no_two_principals_differ_in_case_only(people: People) -> None:
    people.principals.add("Bob", "olga")
    with refused("E_PRINCIPAL_EXISTS"):
        people.principals.add("bob", "olga")
    people.principals.disable("Bob", "olga")
    with refused("E_PRINCIPAL_EXISTS"):
        people.principals.add("BOB", "olga")
    assert people.principals.add("Bob", "ben").disabled_at is None
    assert [item.name for item in people.principals.all()] == ["Bob"]


def test_the_reserved_names_are_those_under_which_the_system_writes() -> None:
    found = set()
    for folder in ("activities", "api", "temporal"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= {part.split('"')[0] for part in path.read_text().split('.write("')[1:]}
    assert found
    assert found <= RESERVED


def test_an_approval_with_a_token_that_the_requester_issued_does_not_count(
    database: Database, people: People
) -> None:
    """One person was two: whoever could issue a token could approve with it."""
    desk = Desk(database)
    for name in ("olga", "ana", "ben"):
        people.principals.add(name, "system")
    run = desk.request("dryrun")
    by_olga = people.issue("ana", "olga").info
    renewed = people.issue("ana", "ana", (*by_olga.issuers, "ana")).info
    for token in (by_olga, renewed):
        with refused("E_APPROVAL_OWN") as error:
            desk.approvals.record(desk.world, run, "ana", "approve", ApprovalBody(), token.token_id)
        assert "olga requested" in error.value.message
    by_ben = people.issue("ana", "ben").info
    found = desk.approvals.record(desk.world, run, "ana", "approve", ApprovalBody(), by_ben.token_id)
    assert found.counts
    rejection = people.issue("ben", "olga").info
    assert desk.approvals.record(desk.world, run, "ben", "reject", ApprovalBody(), rejection.token_id)


def test_who_had_a_hand_in_the_token_of_a_request_does_not_approve_it(
    database: Database, people: People
) -> None:
    """An owner registered a second name, asked under it, and approved."""
    desk = Desk(database)
    for name in ("olga", "second", "third", "ana"):
        people.principals.add(name, "system")
    second = people.issue("second", "olga").info
    third = people.issue("third", "second", (*second.issuers, "second")).info
    wanted = ApplyRequest(run_id="run-third", to="dryrun")
    desk.requests.request(desk.world, wanted, "third", issuers=third.issuers)
    mine = people.issue("olga", "system").info
    for name, token in (("olga", mine), ("second", second)):
        with refused("E_APPROVAL_OWN") as error:
            desk.approvals.record(desk.world, "run-third", name, "approve", ApprovalBody(), token.token_id)
        assert f"{name} issued the token" in error.value.message
    own = people.issue("ana", "system").info
    assert desk.approvals.record(
        desk.world, "run-third", "ana", "approve", ApprovalBody(), own.token_id
    ).counts


@pytest.mark.parametrize(
    ("asks", "approves", "counts"),
    [
        ("olga@local", "olga", False),
        ("olga", "olga@local", False),
        ("olga@local", "third", False),
        ("third", "olga@local", False),
        ("Olga", "olga", False),
        ("olga@local", "ben", True),
        ("olga", "third-by-ben", True),
    ],
)
def test_a_name_that_the_requester_registered_does_not_approve(
    database: Database, people: People, asks: str, approves: str, counts: bool
) -> None:
    """One person was two, without a token that they had issued: with a name here and one at the provider."""
    desk = Desk(database)
    registered = {"olga@local": "system", "olga": "olga@local", "third": "olga", "ben": "system"}
    for name, by in {**registered, "third-by-ben": "ben"}.items():
        people.principals.add(name, by)
    desk.requests.request(desk.world, ApplyRequest(run_id="run", to="dryrun"), asks)

    def approve() -> bool:
        return desk.approvals.record(desk.world, "run", approves, "approve", ApprovalBody()).counts

    if counts:
        assert approve()
        return
    with refused("E_APPROVAL_OWN"):
        approve()
    assert desk.approvals.record(desk.world, "run", approves, "reject", ApprovalBody()).counts
