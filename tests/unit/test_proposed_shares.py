"""Shares of worlds by equal risk and by drift bands."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.allocation.shares import DriftBand, drift_bands, equal_risk
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.allocations import ShareProposal


def swings(size: str, count: int = 20) -> list[Decimal]:
    """Returns that go up and down by a size."""
    return [Decimal(size) * (-1) ** day for day in range(count)]


def shares(proposal: ShareProposal) -> dict[str, str]:
    return {item.world_id: str(item.share) for item in proposal.shares}


def reasons(proposal: ShareProposal) -> dict[str, str]:
    return {item.world_id: item.why for item in proposal.shares}


def number(text: str) -> Decimal:
    return Decimal(text)


def test_a_world_with_three_times_the_volatility_gets_a_third_of_the_share() -> None:
    proposal = equal_risk({"calm": swings("0.01"), "wild": swings("0.03")}, {})
    assert shares(proposal) == {"calm": "0.75", "wild": "0.25"}
    # std of 20 returns of ±0.01 with ddof 1: 0.01 · √(20/19)
    assert reasons(proposal)["calm"] == "volatility 0.0102598 per day, its inverse 97.4679"


def test_a_cap_gives_what_it_cuts_to_the_others() -> None:
    returns = {"a": swings("0.01"), "b": swings("0.04"), "c": swings("0.04")}
    assert shares(equal_risk(returns, {}, number("0.5"))) == {"a": "0.5", "b": "0.25", "c": "0.25"}
    assert shares(equal_risk(returns, {}, number("0.3"))) == {"a": "0.3", "b": "0.3", "c": "0.3"}
    assert "capped" in reasons(equal_risk(returns, {}, number("0.5")))["a"]


@pytest.mark.parametrize("few", [[], swings("0.01", 19), [Decimal("0.01")] * 30])
def test_a_world_that_was_not_measured_keeps_its_share(few: list[Decimal]) -> None:
    returns = {"new": few, "b": swings("0.02"), "c": swings("0.02")}
    proposal = equal_risk(returns, {"new": number("0.2"), "b": number("0.1")})
    assert shares(proposal) == {"b": "0.4", "c": "0.4", "new": "0.2"}
    assert reasons(proposal)["new"].startswith("insufficient")


def test_a_world_without_returns_keeps_its_share_too() -> None:
    proposal = equal_risk({"b": swings("0.02")}, {"a": number("0.3"), "b": number("0.1")})
    assert shares(proposal) == {"a": "0.3", "b": "0.7"}


def test_a_share_within_its_band_drifts_and_one_outside_is_brought_to_its_edge() -> None:
    bands = {name: DriftBand(number("0.3"), number("0.05")) for name in "abc"}
    proposal = drift_bands(bands, {"a": number("0.33"), "b": number("0.38"), "c": number("0.2")})
    assert shares(proposal) == {"a": "0.33", "b": "0.35", "c": "0.25"}
    assert reasons(proposal) == {
        "a": "0.33 is within its band 0.25 to 0.35: kept",
        "b": "0.38 is outside its band 0.25 to 0.35: brought to 0.35",
        "c": "0.2 is outside its band 0.25 to 0.35: brought to 0.25",
    }


def test_a_cap_ends_a_band() -> None:
    bands = {"a": DriftBand(number("0.3"), number("0.2"))}
    assert shares(drift_bands(bands, {"a": number("0.45")}, number("0.4"))) == {"a": "0.4"}


def test_bands_that_add_up_to_more_than_all_give_up_above_their_lower_edges() -> None:
    bands = {
        "a": DriftBand(number("0.5"), number("0.05")),
        "b": DriftBand(number("0.3"), number("0.05")),
        "c": DriftBand(number("0.2"), number("0.05")),
    }
    current = {"a": number("0.3"), "b": number("0.35"), "c": number("0.35")}
    # 0.45 + 0.35 + 0.25; b and c are 0.1 above their lower edges each, and give up 0.025 each
    assert shares(drift_bands(bands, current)) == {"a": "0.45", "b": "0.325", "c": "0.225"}


def test_a_world_without_a_band_keeps_its_share() -> None:
    bands = {"a": DriftBand(number("0.3"), number("0.05"))}
    assert shares(drift_bands(bands, {"a": number("0.2"), "b": number("0.6")})) == {"a": "0.25", "b": "0.6"}


@pytest.mark.parametrize(
    ("bands", "current", "words"),
    [
        ({"a": "0.7", "b": "0.4"}, {}, "above 1"),
        ({"a": "0.5"}, {"a": "0.7", "b": "0.4"}, "above 1"),
        ({"a": "-0.5"}, {}, "negative"),
        ({"a": "0.5"}, {"a": "0.1", "b": "0.8"}, "lower edges"),
    ],
)
def test_shares_that_add_up_to_more_than_all_are_refused(
    bands: dict[str, str], current: dict[str, str], words: str
) -> None:
    with pytest.raises(QmtlError, match=words) as refused:
        drift_bands(
            {name: DriftBand(number(target), number("0.05")) for name, target in bands.items()},
            {name: number(share) for name, share in current.items()},
        )
    assert refused.value.code == "E_WEIGHT"


RETURNS = st.lists(st.integers(-999, 999).map(lambda value: Decimal(value) / 1000), min_size=18, max_size=25)
SHARES = st.integers(0, 250).map(lambda value: Decimal(value) / 1000)
NAMES = st.sampled_from(["a", "b", "c", "d"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, RETURNS), st.dictionaries(NAMES, SHARES), st.integers(1, 100))
def test_equal_risk_shares_out_at_most_all_and_orders_by_volatility(
    returns: dict[str, list[Decimal]], current: dict[str, Decimal], percent: int
) -> None:
    cap = Decimal(percent) / 100
    proposal = equal_risk(returns, current, cap)
    assert sum(item.share for item in proposal.shares) <= 1
    assert proposal == equal_risk(dict(reversed(returns.items())), dict(reversed(current.items())), cap)
    measured = [item for item in proposal.shares if item.why.startswith("volatility")]
    assert all(item.share <= cap for item in measured)
    assert {item.world_id for item in proposal.shares} == returns.keys() | current.keys()


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, st.tuples(SHARES, SHARES)), st.dictionaries(NAMES, SHARES))
def test_drift_bands_share_out_at_most_all_and_stay_within_their_edges(
    shapes: dict[str, tuple[Decimal, Decimal]], current: dict[str, Decimal]
) -> None:
    bands = {name: DriftBand(target, width) for name, (target, width) in shapes.items()}
    proposal = drift_bands(bands, current)
    found = {item.world_id: item.share for item in proposal.shares}
    assert sum(found.values()) <= 1
    for name, band in bands.items():
        low, high = band.edges(Decimal(1))
        assert low - Decimal("1e-12") <= found[name] <= high
