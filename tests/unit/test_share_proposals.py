"""Shares that a schedule proposes, and what a schedule may be."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from activities.rebalancing.proposals import PresentShare, drifted_shares, exceeds_tolerance, proposal
from api.cli.rebalance_schedules import NameBody
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.rebalance_schedules import ProposedShare, RebalanceScheduleBody

D = Decimal
STEP = D("0.000000000001")


def present(share: str, earned: str = "0", capital: str = "1000") -> PresentShare:
    return PresentShare(D(share), D(capital), D(earned))


def schedule(method: str = "drift_bands", **fields: Any) -> RebalanceScheduleBody:
    worlds = fields.pop("worlds", {"a": ("0.5", "0.1"), "b": ("0.3", "0.1")})
    named = [
        {"world_id": name, **dict(zip(("target", "width"), values, strict=False))}
        for name, values in worlds.items()
    ]
    return RebalanceScheduleBody.model_validate({"method": method, "worlds": named, **fields})


def after(proposed: tuple[ProposedShare, ...]) -> dict[str, str]:
    return {item.world_id: f"{item.after:f}" for item in proposed}


@pytest.mark.parametrize(
    ("worlds", "expected"),
    [
        # 0.5 · 1.2 = 0.6, 0.3 · 0.9 = 0.27, and 0.2 of the capital in no world: 1.07 in all.
        (
            {"a": present("0.5", "200"), "b": present("0.3", "-100")},
            {"a": "0.560747663551", "b": "0.252336448598"},
        ),
        ({"a": present("0.5", "200")}, {"a": "0.545454545454"}),
        ({"a": present("1", "200")}, {"a": "1"}),
        ({"a": present("0.5", "0"), "b": present("0.5", "0")}, {"a": "0.5", "b": "0.5"}),
        (
            {"a": present("0.5", "1000"), "b": present("0.5", "0")},
            {"a": "0.666666666666", "b": "0.333333333333"},
        ),
        ({"a": present("0.5", "-1000"), "b": present("0.5", "0")}, {"a": "0", "b": "1"}),
        ({"a": present("0.5", "-3000"), "b": present("0.2", "0")}, {"a": "0", "b": "0.4"}),
        ({"a": present("1", "-1000")}, {"a": "0"}),
        ({"a": present("0.2", "1", "10")}, {"a": "0.215686274509"}),
    ],
)
def test_worked_drifts(worlds: Mapping[str, PresentShare], expected: dict[str, str]) -> None:
    assert {name: f"{share:f}" for name, share in drifted_shares(worlds).items()} == expected


def test_shares_drift_only_into_what_other_worlds_leave() -> None:
    """Their shares stay what they are, so that all together are at most 1."""
    found = drifted_shares({"a": present("0.5", "1000"), "b": present("0.25", "0")}, D("0.25"))
    assert {name: f"{share:f}" for name, share in found.items()} == {"a": "0.6", "b": "0.15"}


@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.integers(-2000, 5000), st.integers(1, 10**6)),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 100),
)
@settings(max_examples=300, deadline=None)
def test_drifted_shares_are_shares(worlds: list[tuple[int, int, int]], others: int) -> None:
    found = drifted_shares(
        {
            str(number): PresentShare(D(share) / 1000, D(capital), D(earned) * capital / 1000)
            for number, (share, earned, capital) in enumerate(worlds)
        },
        D(others) / 1000,
    )
    assert all(share >= 0 for share in found.values())
    assert sum(found.values()) + D(others) / 1000 <= 1


def test_bands_let_shares_drift_and_stop_them_at_their_edges() -> None:
    worlds = {"a": present("0.5", "400"), "b": present("0.3", "30")}
    # 0.7 and 0.309, with 0.2 in no world: 1.209 in all.
    proposed = proposal(schedule(worlds={"a": ("0.5", "0.05"), "b": ("0.3", "0.05")}), worlds, {}, {})
    assert after(proposed) == {"a": "0.55", "b": "0.25558312655"}
    assert "outside its band 0.45 to 0.55: brought to 0.55" in proposed[0].why
    assert "within its band" in proposed[1].why
    capped = schedule(worlds={"a": ("0.5", "0.05"), "b": ("0.3", "0.05")}, cap="0.52")
    assert after(proposal(capped, worlds, {}, {}))["a"] == "0.52"


def test_given_shares_are_proposed_as_they_are() -> None:
    given_now = schedule("given", worlds={"a": ("0.4",), "b": ("0.3",)})
    worlds = {"a": PresentShare(D("0.5")), "b": PresentShare(D("0.3"))}
    assert after(proposal(given_now, worlds, {"c": D("0.3")}, {})) == {"a": "0.4", "b": "0.3"}
    with pytest.raises(QmtlError) as refused:
        proposal(given_now, worlds, {"c": D("0.31")}, {})
    assert refused.value.code == "E_WEIGHT"


def test_equal_risk_divides_what_its_worlds_have_together() -> None:
    returns = {
        "a": [D("0.01") * (-1) ** day for day in range(20)],
        "b": [D("0.03") * (-1) ** day for day in range(20)],
    }
    worlds = {"a": PresentShare(D("0.2")), "b": PresentShare(D("0.2"))}
    risky = schedule("equal_risk", worlds={"a": (), "b": ()})
    assert after(proposal(risky, worlds, {"c": D("0.5")}, returns)) == {"a": "0.3", "b": "0.1"}
    few = {**returns, "b": returns["b"][1:]}
    proposed = proposal(risky, worlds, {"c": D("0.5")}, few)
    assert after(proposed) == {"a": "0.2", "b": "0.2"}
    assert "insufficient: 19 returns of 20" in proposed[1].why


@pytest.mark.parametrize(("tolerance", "expected"), [("0.05", False), ("0.049999999999", True), ("0", True)])
def test_a_difference_that_equals_the_tolerance_is_within(tolerance: str, expected: bool) -> None:
    shares = (
        ProposedShare(world_id="a", before=D("0.3"), after=D("0.35")),
        ProposedShare(world_id="b", before=D("0.3"), after=D("0.3")),
    )
    assert exceeds_tolerance(shares, D(tolerance)) is expected
    assert exceeds_tolerance(shares[1:], D(0)) is False


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"worlds": {}}, "at least 1"),
        ({"worlds": {"a": ("0.5",)}}, "takes a target and a width"),
        ({"method": "given"}, "takes a target"),
        ({"method": "equal_risk"}, "neither target nor width"),
        ({"method": "best"}, "given"),
        (
            {"worlds": {"a": ("0.7", "0.1"), "b": ("0.4", "0.1")}},
            "add up to 1.1; they may",
        ),
        ({"worlds": {"a": ("1.1", "0.1")}}, "less than or equal to 1"),
        ({"every": "59m"}, "at least 1h"),
        ({"every": "400d"}, "at most 366d"),
        ({"tolerance": "-0.1"}, "greater than or equal to 0"),
        ({"cap": "0"}, "greater than 0"),
        ({"method": "given", "worlds": {"a": ("0.5",)}, "cap": "0.4"}, "the method given takes no cap"),
        ({"worlds": {f"w{number}": ("0", "0") for number in range(101)}}, "at most 100"),
    ],
)
def test_what_no_schedule_may_be(fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError) as refused:
        schedule(**fields)
    assert wrong in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (
            {"every": "daily"},
            "every: 'daily' is not a duration of at most a century: write whole seconds (60) or",
        ),
        ({"every": "5m"}, "every: write at least 1h and at most 366d"),
        ({"method": "given"}, "the method given takes no cap: "),
    ],
)
def test_a_mistake_is_refused_with_what_to_write(fields: dict[str, Any], wrong: str) -> None:
    body = {"method": "drift_bands", "worlds": [{"world_id": "a", "target": "0.3", "width": "0"}], "cap": "1"}
    with pytest.raises(QmtlError) as refused:
        validated(RebalanceScheduleBody, {**body, **fields}, "E_BODY_INVALID", "schedule")
    assert refused.value.message.startswith(f"the schedule is refused: {wrong}")


def test_what_the_name_of_a_schedule_may_have_is_said_in_words() -> None:
    with pytest.raises(QmtlError, match="name: write a name with lower-case letters, digits and -"):
        validated(NameBody, {"name": "Bands"}, "E_BODY_INVALID", "schedule")


@pytest.mark.parametrize(
    ("every", "now", "expected"),
    [
        ("1d", (2026, 11, 30, 18, 40), (2026, 12, 1)),
        ("1w", (2026, 11, 30, 18, 40), (2026, 12, 3)),  # a Thursday
        ("1h", (2026, 11, 30, 18), (2026, 11, 30, 19)),
    ],
)
def test_it_fires_at_whole_multiples_of_its_interval(
    every: str, now: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    found = schedule(every=every).next_firing(datetime(*now, tzinfo=UTC))  # type: ignore[arg-type,misc]
    assert found == datetime(*expected, tzinfo=UTC)  # type: ignore[arg-type,misc]


def test_a_world_is_named_once() -> None:
    twice = [{"world_id": "a", "target": "0.1"}] * 2
    with pytest.raises(ValidationError, match="named twice"):
        RebalanceScheduleBody.model_validate({"method": "given", "worlds": twice})
