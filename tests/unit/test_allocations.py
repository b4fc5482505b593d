"""Allocations, instruments and requests: their limits, their hashes, and what they refuse."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from activities.allocation.planner import plan_rebalancing
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.allocations import (
    AllocationSnapshot,
    AllocationUpdate,
    WorldAllocation,
    changes_between,
)
from qmtl_sdk.contracts.instruments import InstrumentConstraints, Instruments
from qmtl_sdk.contracts.rebalance_plan import EvidenceMetrics, RebalancePlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from tests.support.rebalancing import Change, planned, request, shown

NOW = datetime(2026, 1, 2, tzinfo=UTC)
HALF: dict[str, Change] = {"a": ("0.4", "0.2")}
POSITION = {"world_id": "a", "strategy_id": "s", "symbol": "X", "quantity": "3", "mark": "100"}
OVERLAY = {"instrument_by_world": {"a": "PERP"}, "price_by_symbol": {"PERP": "50"}}

ACCOUNT = {
    "max_gross_notional": "1000",
    "max_net_notional": "1000",
    "min_margin_headroom": "0",
    "equity": "1000",
}


def allocation(world_id: str, weight: str, **strategies: str) -> dict[str, Any]:
    return {"world_id": world_id, "weight": weight, "strategies": strategies}


def test_a_snapshot_has_the_same_etag_at_another_time_and_in_another_order() -> None:
    one = AllocationSnapshot(
        allocations=[allocation("a", "0.3"), allocation("b", "0.2", s="0.1", t="0.1")], updated_at=NOW
    )
    other = AllocationSnapshot(
        allocations=[allocation("b", "0.20", t="0.10", s="0.1"), allocation("a", "0.3")],
        updated_at=NOW + timedelta(days=1),
    )
    changed = AllocationSnapshot(allocations=[allocation("a", "0.4")], updated_at=NOW)
    assert one.etag == other.etag != changed.etag
    assert AllocationSnapshot.model_validate(one.json_dict()) == one


def test_a_stale_etag_is_refused_with_the_present_one() -> None:
    snapshot = AllocationSnapshot(allocations=[allocation("a", "0.3")], updated_at=NOW)
    snapshot.require_etag(snapshot.etag)
    snapshot.require_etag("")
    with pytest.raises(QmtlError) as refused:
        snapshot.require_etag("blake3:old")
    assert (refused.value.code, refused.value.status) == ("E_ETAG", 409)
    assert refused.value.details["etag"] == snapshot.etag


def test_a_snapshot_is_stale_when_it_is_older_than_the_limit() -> None:
    snapshot = AllocationSnapshot(allocations=[], updated_at=NOW)
    assert not snapshot.is_stale(NOW + timedelta(hours=1), timedelta(hours=1))
    assert snapshot.is_stale(NOW + timedelta(hours=1, seconds=1), timedelta(hours=1))


@pytest.mark.parametrize(
    ("allocations", "words"),
    [
        ([allocation("a", "1.1")], "less than or equal to 1"),
        ([allocation("a", "-0.1")], "greater than or equal to 0"),
        ([allocation("a", "0.6"), allocation("b", "0.400000000001")], "add up to 1.000000000001, above 1"),
        ([allocation("a", "0.3"), allocation("a", "0.3")], "named twice"),
        (
            [allocation("a", "0.3", s="0.2", t="0.2")],
            r"strategies of a add up to 0.4, above 0.3 \(shares of the whole capital: half of 0.3 is 0.15\)",
        ),
        ([allocation("a", "NaN")], "finite"),
    ],
)
def test_weights_that_share_out_more_than_there_is_are_refused(allocations: list[Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AllocationUpdate(allocations=allocations)


def test_shares_of_a_world_become_exact_shares_of_the_capital() -> None:
    third = Decimal("0.333333333333")
    found = WorldAllocation.of_shares("a", third, {"s": third, "t": Decimal(1) - third})
    assert found.strategies["s"] == Decimal("0.111111111110888888888889")
    assert sum(found.strategies.values()) == third


def test_changes_name_every_world_and_the_strategies_with_a_weight_of_their_own() -> None:
    before = [WorldAllocation(**allocation("a", "0.3", s="0.1")), WorldAllocation(**allocation("b", "0.2"))]
    after = [WorldAllocation(**allocation("a", "0.2", t="0.1")), WorldAllocation(**allocation("c", "0.1"))]
    found = {item.world_id: item for item in changes_between(before, after)}
    weights = {name: (str(item.before), str(item.after)) for name, item in found.items()}
    assert weights == {"a": ("0.3", "0.2"), "b": ("0.2", "0.2"), "c": ("0", "0.1")}
    assert [(item.strategy_id, item.before) for item in found["a"].strategies] == [("t", 0)]


def test_a_first_share_of_a_strategy_does_not_cancel_the_reduction_of_its_world() -> None:
    before = [WorldAllocation(**allocation("a", "0.3"))]
    after = [WorldAllocation(**allocation("a", "0.1", s="0.05"))]
    body = {"worlds": changes_between(before, after), "instruments": {"lot": "1"}}
    for held in (POSITION, POSITION | {"quantity": "-3"}):
        asked = MultiWorldRebalanceRequest.model_validate({**body, "positions": [held]})
        with pytest.raises(QmtlError, match="strategy s holds positions in world a") as refused:
            plan_rebalancing(asked)
        assert refused.value.code == "E_ALLOCATION_MISSING"
    other = MultiWorldRebalanceRequest.model_validate(
        {**body, "positions": [POSITION | {"strategy_id": "t"}]}
    )
    assert shown(plan_rebalancing(other).deltas) == ["a X -2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": [{**POSITION, "mark": "0"}]}, "mark"),
        ({"positions": [{**POSITION, "mark": "-1"}]}, "mark"),
        ({"positions": [{**POSITION, "quantity": "1e16"}]}, "quantity"),
        ({"positions": [POSITION, POSITION]}, r"position a s X is given twice \["),
        (
            {
                "positions": [POSITION | {"venue": "V", "symbol": name} for name in ("X", "Y", "Z")],
                "instruments": {"venues": [{"venue": "V", "symbols": [{"symbol": "X", "aliases": ["Z"]}]}]},
            },
            "position a s V X is given twice, as X and as Z",
        ),
        (
            {
                "positions": [POSITION | {"venue": "V", "symbol": name} for name in ("Z", "Y")],
                "instruments": {
                    "venues": [{"venue": "V", "symbols": [{"symbol": "X", "aliases": ["Z", "Y"]}]}]
                },
            },
            "as Y and as Z",
        ),
        ({"instruments": {"lot": "-1"}}, "lot"),
        ({"instruments": {"lot": "0"}}, "lot"),
        ({"instruments": {"min_trade_notional": "-1"}}, "min_trade_notional"),
        ({"worlds": []}, "worlds"),
        ({"worlds": [{"world_id": "a", "before": "0.5", "after": "1.5"}]}, "less than or equal to 1"),
        (
            {"worlds": [{"world_id": name, "before": "0", "after": "0.6"} for name in "ab"]},
            "the worlds after add up to 1.2",
        ),
        (
            {
                "worlds": [
                    {
                        "world_id": "a",
                        "before": "0.5",
                        "after": "0.2",
                        "strategies": [{"strategy_id": "s", "before": "0.2", "after": "0.3"}],
                    }
                ]
            },
            r"the strategies of a after add up to 0.3, above 0.2 \(.*half of 0.2 is 0.1\)",
        ),
        ({"overlay": OVERLAY}, "overlay has no effect in the mode scaling"),
        ({"shared_account": ACCOUNT}, "shared_account has no effect in the scope world"),
        ({"shared_account": ACCOUNT, "scope": "strategy"}, "no effect in the scope strategy"),
        *(
            (
                {
                    "shared_account": ACCOUNT,
                    "scope": "global",
                    "worlds": [{"world_id": "a", "before": "0.3", "after": "0.2", "limits": {name: "0"}}],
                },
                "limits of the world a have no effect in the scope global",
            )
            for name in ("cash", "max_turnover")
        ),
        ({"rebalance_intent": {"reason": "drift"}}, "schema_version 2"),
        ({"schema_version": 3}, "schema_version"),
        ({"mode": "other"}, "mode"),
        ({"run_id": "a b"}, "run_id"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_request_that_says_what_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    body = {"worlds": [{"world_id": "a", "before": "0.3", "after": "0.2"}], "positions": [POSITION]}
    MultiWorldRebalanceRequest.model_validate(body)
    with pytest.raises(ValidationError, match=words):
        MultiWorldRebalanceRequest.model_validate({**body, **change})


OF_ANOTHER_SCALE: dict[str, Change] = {"a": ("0.4", "0.2", {"s": ("0.1", "0.1")})}


@pytest.mark.parametrize(
    ("worlds", "positions", "more", "code", "words"),
    [
        (HALF, ["b/s X 1 @ 1"], {}, "E_ALLOCATION_MISSING", "world b has positions"),
        (
            HALF,
            ["a/s X 1 @ 1"],
            {"instruments": {}},
            "E_INSTRUMENT_UNKNOWN",
            "no lot is known for 'X' without a venue: its position names none",
        ),
        (
            HALF,
            ["a/s X.V 1 @ 1"],
            {"instruments": {}},
            "E_INSTRUMENT_UNKNOWN",
            "no lot is known for 'X' at venue 'V'",
        ),
        (
            HALF,
            ["a/s ETHH.V 1 @ 1"],
            {"instruments": {"venues": [{"venue": "V", "symbols": [{"symbol": "ETH", "lot": "1"}]}]}},
            "E_INSTRUMENT_UNKNOWN",
            "did you mean 'ETH'",
        ),
        (HALF, ["a/s X 1 @ 1", "a/t X 1 @ 1.01"], {}, "E_MARK_CONFLICT", "X is marked at 1 and at 1.01"),
        (HALF, ["a/s X 4 @ 1"], {"mode": "overlay"}, "E_OVERLAY", "needs an instrument"),
        (HALF, ["a/s X 4 @ 1"], {"mode": "hybrid"}, "E_OVERLAY", "needs an instrument"),
        (
            HALF,
            ["a/s X 4 @ 1"],
            {"mode": "overlay", "overlay": {**OVERLAY, "price_by_symbol": {}}},
            "E_OVERLAY",
            "and its price",
        ),
        (
            HALF,
            ["a/s X 4 @ 1"],
            {"mode": "overlay", "overlay": {**OVERLAY, "price_by_symbol": {"OTHER": "1"}}},
            "E_OVERLAY",
            "has no price",
        ),
        (
            {"b": ("0.4", "0.2")},
            ["b/s X 4 @ 1"],
            {"mode": "overlay", "overlay": OVERLAY},
            "E_OVERLAY",
            "world b has no overlay instrument",
        ),
        (
            HALF,
            [],
            {"mode": "overlay", "overlay": {**OVERLAY, "instrument_by_world": {"a": "PERP", "b": "PERP"}}},
            "E_OVERLAY",
            "of two worlds",
        ),
        (OF_ANOTHER_SCALE, [], {"mode": "overlay", "overlay": OVERLAY}, "E_OVERLAY", "another scale"),
        (
            HALF,
            ["a/s X 9 @ 9", "a/t PERP 1 @ 51"],
            {"mode": "overlay", "overlay": OVERLAY},
            "E_MARK_CONFLICT",
            "marked at 51 and at 50",
        ),
        (
            HALF,
            ["a/s X 9e15 @ 9e15"],
            {
                "mode": "overlay",
                "overlay": {**OVERLAY, "price_by_symbol": {"PERP": "0.01"}},
            },
            "E_QUANTITY_RANGE",
            "beyond",
        ),
        (
            HALF,
            ["a/s X 4 @ 1", "a/s PERP 1 @ 50"],
            {"mode": "hybrid", "overlay": OVERLAY},
            "E_OVERLAY",
            "PERP is held",
        ),
        (HALF, ["a/s X 4 @ 1"], {"scope": "global"}, "E_SHARED_ACCOUNT_DISABLED", "is off"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_its_code(
    worlds: dict[str, Change], positions: list[str], more: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(QmtlError, match=words) as refused:
        planned(worlds, positions, **more)
    assert refused.value.code == code
    assert refused.value.status == (403 if code == "E_SHARED_ACCOUNT_DISABLED" else 422)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("worlds", "positions", "overlay", "remedy"),
    [
        (
            HALF,
            [],
            {"instrument_by_world": {"a": "PERP", "b": "PERP"}},
            "give each world an instrument of its own",
        ),
        (HALF, ["a/s PERP 1 @ 50"], {}, "choose an instrument that nobody holds"),
        (
            {"b": ("0.4", "0.2")},
            ["b/s X 4 @ 1"],
            {},
            "give overlay.instrument_by_world a symbol for each world",
        ),
    ],
)
def test_each_fault_of_an_overlay_has_its_remedy(
    worlds: dict[str, Change], positions: list[str], overlay: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(QmtlError) as refused:
        planned(worlds, positions, mode="hybrid", overlay=OVERLAY | overlay)
    assert refused.value.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("limits", "broken"),
    [
        ({"max_gross_notional": "399"}, ["max_gross_notional"]),
        ({"max_net_notional": "199"}, ["max_net_notional"]),
        ({"min_margin_headroom": "0.601"}, ["min_margin_headroom"]),
        ({"max_gross_notional": "0", "max_net_notional": "0"}, ["max_gross_notional", "max_net_notional"]),
    ],
)
def test_a_shared_account_beyond_a_limit_is_refused_with_the_figures(
    limits: dict[str, str], broken: list[str]
) -> None:
    account = {
        "max_gross_notional": "400",
        "max_net_notional": "200",
        "min_margin_headroom": "0.6",
        "equity": "1000",
    }
    positions = ["a/s X 6 @ 100", "a/s Y -2 @ 100"]
    halved: dict[str, Any] = {"scope": "global"}
    assert shown(planned(HALF, positions, **halved, shared_account=account).deltas) == ["X -3", "Y 1"]
    with pytest.raises(QmtlError) as refused:
        planned(HALF, positions, **halved, shared_account={**account, **limits})
    assert (refused.value.code, refused.value.status) == ("E_SHARED_ACCOUNT_POLICY", 422)
    figures = {"gross_notional": "400", "net_notional": "200", "margin_headroom": "0.6"}
    assert refused.value.details.items() >= {**figures, "broken": broken}.items()


def test_a_shared_account_is_within_its_limits_also_while_an_overlay_is_held() -> None:
    account = {"max_gross_notional": "150", "max_net_notional": "100", "min_margin_headroom": "0"}
    more: dict[str, Any] = {"scope": "global", "mode": "hybrid", "overlay": OVERLAY}
    fits = {**account, "equity": "1000"}
    plan = planned(HALF, ["a/s X 10 @ 10"], **more, shared_account=fits)
    assert shown(plan.deltas) == ["overlay a PERP -1", "X -5", "unwind a PERP 1"]
    with pytest.raises(QmtlError) as refused:
        planned(HALF, ["a/s X 10 @ 10"], **more, shared_account={**fits, "max_gross_notional": "149"})
    assert refused.value.details["gross_notional"] == "150"


def test_an_alias_is_not_the_name_of_another_symbol_of_its_venue() -> None:
    symbols = [{"symbol": "BTC", "aliases": ["XBT"]}, {"symbol": "XBT"}]
    with pytest.raises(ValidationError, match="'XBT'"):
        InstrumentConstraints.model_validate({"venues": [{"venue": "V", "symbols": symbols}]})
    with pytest.raises(ValidationError, match="the venue 'V'"):
        InstrumentConstraints.model_validate({"venues": [{"venue": "V"}, {"venue": "V"}]})


def test_each_layer_overrides_the_values_that_it_names() -> None:
    symbol = {"symbol": "X", "aliases": ["Y"], "supports_reduce_only": False, "cost_bps": "0"}
    venue = {"venue": "V", "lot": "0.1", "time_in_force": "IOC", "symbols": [symbol]}
    layers = {"lot": "1", "cost_bps": "5", "supports_reduce_only": True, "venues": [venue]}
    rules = Instruments(InstrumentConstraints.model_validate(layers))
    found = rules.find("V", "Y")
    assert (found.symbol, found.lot, found.time_in_force) == ("X", Decimal("0.1"), "IOC")
    assert (found.supports_reduce_only, found.cost_bps, found.margin_rate) == (False, 0, 1)
    other = rules.find("W", "Y")
    assert (other.symbol, other.lot, other.time_in_force, other.cost_bps) == ("Y", 1, "GTC", 5)


def test_the_same_run_id_stands_for_the_same_content() -> None:
    sent = request(HALF, ["a/s X 4 @ 1"], run_id="r1")
    again = request(HALF, ["a/s X 4.0 @ 1.00"], run_id="r1")
    again.require_same(sent.content_hash)
    other = request(HALF, ["a/s X 5 @ 1"], run_id="r1")
    with pytest.raises(QmtlError) as refused:
        other.require_same(sent.content_hash)
    assert (refused.value.code, refused.value.status) == ("E_RUN_ID_REUSED", 409)


def test_a_plan_is_executed_only_for_what_it_was_made_from() -> None:
    plan = planned(HALF, ["a/s X 4 @ 100"])
    repriced = planned(HALF, ["a/s X 4 @ 101"], limits={"cash": "9"})
    repriced.require_etag(plan.etag)
    assert repriced.content_hash != planned(HALF, ["a/s X 4 @ 100"]).content_hash == plan.content_hash
    for changed in (
        planned(HALF, ["a/s X 5 @ 100"]),
        planned({"a": ("0.4", "0.1")}, ["a/s X 4 @ 100"]),
        planned(HALF, ["a/s X 4 @ 100"], instruments={"lot": "2"}),
        planned(HALF, ["a/s X 4 @ 100"], limits={"max_turnover": "1"}),
        planned(HALF, ["a/s X 4 @ 100"], allocations_etag="blake3:other"),
    ):
        with pytest.raises(QmtlError) as refused:
            changed.require_etag(plan.etag)
        assert (refused.value.code, refused.value.details["etag"]) == ("E_ETAG", changed.etag)


def test_a_plan_is_not_executed_at_another_venue_of_its_overlay() -> None:
    def overlaid(**values: Any) -> RebalancePlan:
        overlay = {**OVERLAY, "venue_by_symbol": {"PERP": "V"}, **values}
        return planned(HALF, ["a/s X 4 @ 100"], mode="overlay", overlay=overlay)

    plan = overlaid()
    overlaid(price_by_symbol={"PERP": "51"}).require_etag(plan.etag)
    for elsewhere in (overlaid(venue_by_symbol={"PERP": "W"}), overlaid(venue_by_symbol={})):
        with pytest.raises(QmtlError, match="E_ETAG"):
            elsewhere.require_etag(plan.etag)


def test_schema_2_repeats_the_intent_and_has_the_measured_metrics() -> None:
    evidence = [
        EvidenceMetrics(world_id="a", metrics={"sharpe": 1.1}),
        EvidenceMetrics(world_id="a", strategy_id="s", metrics={"sharpe": 0.9, "max_drawdown": None}),
        EvidenceMetrics(world_id="other", metrics={"sharpe": 3.0}),
    ]
    intent = {"reason": "monthly", "labels": {"desk": "one"}}
    asked = request(HALF, ["a/s X 4 @ 1"], schema_version=2, rebalance_intent=intent)
    asked.require_alpha_metrics()
    plan = plan_rebalancing(asked, evidence)
    assert plan.rebalance_intent is not None
    assert plan.rebalance_intent.json_dict() == intent
    assert plan.alpha_metrics is not None
    assert plan.alpha_metrics.per_world == {"a": {"sharpe": 1.1}}
    assert plan.alpha_metrics.per_strategy == {"a": {"s": {"sharpe": 0.9, "max_drawdown": None}}}
    assert RebalancePlan.model_validate_json(plan.model_dump_json()) == plan


def test_schema_1_has_no_alpha_metrics_and_is_refused_where_they_are_required() -> None:
    asked = request(HALF, ["a/s X 4 @ 1"])
    assert plan_rebalancing(asked, [EvidenceMetrics(world_id="a", metrics={})]).alpha_metrics is None
    with pytest.raises(QmtlError) as refused:
        asked.require_alpha_metrics()
    assert (refused.value.code, refused.value.status) == ("E_ALPHA_METRICS_REQUIRED", 422)
