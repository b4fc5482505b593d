"""What loosens a world's rules waits for other people, where the policy in force says so."""

from typing import Any

import pytest
from pydantic import ValidationError

from activities.access.principals import SqlPrincipalStore
from activities.access.sql import SqlTokenStore
from activities.applies.rule_changes import SqlRuleChanges
from activities.storage.database import Database
from activities.storage.tables import RuleChangeRow
from activities.worlds.policies import SqlPolicyStore
from activities.worlds.specs import SqlWorldStore
from qmtl_sdk.contracts.access import Role, TokenInfo
from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.worlds import WorldUpdate
from tests.support.desk import Desk, policy

STRICT = {"required": 2, "live": 2, "policy": 2}


class House:
    """A world whose policy asks two people about whatever loosens its rules."""

    def __init__(self, database: Database, **approvals: Any) -> None:
        self.desk = Desk(database, allow_live=False, found=policy(approvals={**STRICT, **approvals}))
        self.changes = SqlRuleChanges(database)
        self.policies = SqlPolicyStore(database)
        self.worlds = SqlWorldStore(database)

    def pending(self, change: Any) -> str:
        """Request a change that must wait. Returns its id."""
        with pytest.raises(QmtlError) as error:
            change()
        assert error.value.code == "E_CHANGE_PENDING"
        return str(error.value.details["change_id"])

    def approve(self, change_id: str, actor: str, verdict: Any = "approve", token_id: str = "") -> str:
        return self.changes.decide("w", change_id, actor, verdict, "seen", token_id).state

    @property
    def in_force(self) -> Policy:
        return self.policies.policy("w")


@pytest.fixture
def house(database: Database) -> House:
    return House(database)


LOOSER = policy(approvals={**STRICT, "required": 1})
STRICTER = policy(approvals=STRICT, campaign={"dryrun": "7d"})


def test_one_operator_sets_no_looser_rules_alone(house: House) -> None:
    before = house.in_force
    change = house.pending(lambda: house.changes.add_policy("w", LOOSER, "olga"))
    assert house.in_force == before
    (waiting,) = house.changes.all("w")
    assert waiting.loosens == ("gating_policy.approvals.required from 2 to 1",)
    with pytest.raises(QmtlError, match="E_APPROVAL_OWN"):
        house.approve(change, "olga")
    assert house.approve(change, "ana") == "waiting"
    assert house.approve(change, "ana") == "waiting", "nobody counts twice"
    assert [item.actor for item in house.changes.all("w")[0].approvals] == ["ana"]
    assert house.in_force == before
    assert house.approve(change, "ben") == "made"
    assert house.in_force.gating_policy.approvals.required == 1
    with pytest.raises(QmtlError, match="E_CHANGE_ENDED"):
        house.approve(change, "carl")


def test_one_operator_does_not_change_how_changes_are_approved(house: House) -> None:
    """More approvals than there are people, or less time than they need, would lock the rules for good."""
    before = house.in_force
    for more in ({"policy": 20}, {"required": 20}, {"live": 20}, {"expires": "5m"}, {"roles": ["owner"]}):
        found = policy(approvals={**STRICT, **more})
        house.pending(lambda found=found: house.changes.add_policy("w", found, "mallory"))
    assert house.in_force == before
    with pytest.raises(QmtlError, match="E_POLICY_INVALID") as error:
        policy(approvals={**STRICT, "expires": "299s"})
    assert "approvals.expires" in error.value.message
    change = house.pending(lambda: house.changes.add_policy("w", LOOSER, "olga"))
    house.approve(change, "ana")
    assert house.approve(change, "ben") == "made"


def test_stricter_rules_and_other_values_wait_for_nobody(house: House) -> None:
    assert house.changes.add_policy("w", STRICTER, "olga").version == 2
    house.changes.update_world("w", WorldUpdate(description="another"), "olga")
    assert house.worlds.world("w").spec.description == "another"
    assert house.changes.all("w") == []


def test_the_same_change_of_the_same_person_waits_once(house: House) -> None:
    def asks(actor: str, required: int = 1) -> str:
        found = policy(approvals={**STRICT, "required": required})
        return house.pending(lambda: house.changes.add_policy("w", found, actor))

    change = asks("olga")
    house.approve(change, "ana")
    assert asks("olga") == change
    assert len({change, asks("mallory"), asks("olga", 0)}) == 3
    assert [item.state for item in house.changes.all("w")] == ["waiting"] * 3
    house.approve(change, "ana", "reject")
    assert asks("olga") != change, "what was rejected is requested anew"


def test_a_world_described_anew_outdates_no_change(house: House) -> None:
    change = house.pending(lambda: house.changes.add_policy("w", LOOSER, "olga"))
    house.changes.update_world("w", WorldUpdate(description="the desk's own"), "mallory")
    house.approve(change, "ana")
    assert house.approve(change, "ben") == "made"


def test_live_is_allowed_by_other_people(house: House) -> None:
    change = house.pending(lambda: house.changes.update_world("w", WorldUpdate(allow_live=True), "olga"))
    assert not house.desk.fence_row().allow_live
    for person in ("ana", "ben"):
        house.approve(change, person)
    assert house.worlds.world("w").spec.allow_live
    assert house.desk.fence_row().allow_live


def test_an_earlier_looser_version_does_not_come_back_by_one_person(house: House) -> None:
    house.changes.add_policy("w", STRICTER, "olga")
    change = house.pending(lambda: house.changes.set_default("w", 1, "olga"))
    assert house.in_force.version == 2
    house.approve(change, "ana")
    house.approve(change, "ben")
    assert house.in_force.version == 1
    with pytest.raises(QmtlError, match="E_POLICY_UNKNOWN"):
        house.changes.set_default("w", 99, "olga")


def test_a_rejected_an_expired_and_an_outdated_change_are_not_made(database: Database) -> None:
    house = House(database)
    expired = house.pending(lambda: house.changes.add_policy("w", LOOSER, "olga"))
    with database.write("test", bookkeeping=True) as tx:
        tx.session.get_one(RuleChangeRow, expired).expires_at = "2024-01-01T00:00:00.000000+00:00"
    rejected = house.pending(lambda: house.changes.add_policy("w", LOOSER, "olga"))
    outdated = house.pending(lambda: house.changes.add_policy("w", LOOSER, "carl"))
    assert house.approve(rejected, "ana", "reject") == "rejected"
    house.changes.add_policy("w", STRICTER, "olga")
    before = house.in_force
    for change in (expired, rejected, outdated):
        with pytest.raises(QmtlError, match=r"is (expired|rejected|outdated)"):
            house.approve(change, "ben")
    assert house.in_force == before
    states = {item.change_id: item.state for item in house.changes.all("w")}
    assert [states[item] for item in (expired, rejected, outdated)] == ["expired", "rejected", "outdated"]
    with pytest.raises(QmtlError, match="E_CHANGE_UNKNOWN"):
        house.changes.decide("w", "change-nothing", "ana", "approve", "")


def test_a_token_that_the_requester_issued_approves_nothing(house: House, database: Database) -> None:
    SqlPrincipalStore(database).add("ana", "olga")
    times = {"created_at": "2024-01-01T00:00:00Z", "expires_at": "2099-01-01T00:00:00Z"}
    token = {"token_id": "t", "subject": "ana", "grants": {"*": Role.OPERATOR}}
    SqlTokenStore(database).add(
        TokenInfo.model_validate({**token, **times, "created_by": "olga", "issuers": ("olga",)})
    )
    change = house.pending(lambda: house.changes.add_policy("w", LOOSER, "olga"))
    with pytest.raises(QmtlError, match="issued the token of this approval"):
        house.approve(change, "ana", token_id="t")


def test_what_people_say_of_a_change_counts_for_no_apply(house: House) -> None:
    """An apply that was named after an approved change of rules went live, and nobody had approved it."""
    desk = house.desk
    change = house.pending(lambda: house.changes.add_policy("w", LOOSER, "olga"))
    with pytest.raises(ValidationError, match="one of a rule change"):
        ApplyRequest(run_id=change, to="dryrun")
    named_after_it = ApplyRequest(run_id="r", to="dryrun").model_copy(update={"run_id": change})
    desk.requests.request(desk.world, named_after_it, "olga")
    assert [house.approve(change, actor) for actor in ("ana", "ben")] == ["waiting", "made"]
    assert desk.requests.find(desk.world, change).approvals == ()
    assert desk.approvals.read(desk.world, change) == ()
    with pytest.raises(QmtlError, match="0 of 2 approvals count"):
        desk.steps.freeze(desk.world, change)


def test_what_people_say_of_an_apply_counts_for_no_change(house: House) -> None:
    desk = house.desk
    change = house.pending(lambda: house.changes.add_policy("w", LOOSER, "olga"))
    named_after_it = ApplyRequest(run_id="r", to="dryrun").model_copy(update={"run_id": change})
    desk.requests.request(desk.world, named_after_it, "olga")
    desk.approve(change)
    assert len(desk.requests.find(desk.world, change).approvals) == 2
    assert house.approve(change, "zoe") == "waiting"
    assert [item.actor for item in house.changes.find("w", change).approvals] == ["zoe"]
