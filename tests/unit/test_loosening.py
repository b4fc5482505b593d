"""What a change of rules loosens, rule by rule."""

from typing import Any

import pytest

from activities.applies.loosening import loosened_policy, loosened_world
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.worlds import WorldSpec

BEFORE: dict[str, Any] = {
    "data_currency": {"max_lag": "3d", "min_history": "250d"},
    "selection": {
        "gates": {"and": ["sharpe >= 0.6", "max_drawdown <= 0.3"]},
        "topk": {"total": 8},
        "constraints": {"correlation": {"max_pairwise": 0.8}, "exposure": {"max_leverage": 2}},
        "hysteresis": {"promote_after": 2, "demote_after": 2},
    },
    "gating_policy": {
        "domains": {"from": "backtest", "to": "dryrun"},
        "dataset_fingerprint": "blake3:a",
        "approvals": {"required": 2, "live": 2, "policy": 1, "roles": ["operator"]},
        "required_signals": ["sharpe"],
        "campaign": {"dryrun": "7d"},
        "apply": {"on_rollback": "flatten"},
    },
    "decision_ttl": 300,
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """`BEFORE` with one value; None takes it away."""
    found: dict[str, Any] = {**BEFORE}
    node, keys = found, path.split(".")
    for key in keys[:-1]:
        node[key] = {**node[key]}
        node = node[key]
    if value is None:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("selection.gates", {"and": ["sharpe >= 0.5", "max_drawdown <= 0.3"]}, "gate sharpe >= 0.6"),
        ("selection.gates", {"and": ["sharpe >= 0.6", "max_drawdown <= 0.4"]}, "gate max_drawdown <= 0.3"),
        ("selection.gates", {"and": ["sharpe >= 0.6"]}, "gate max_drawdown <= 0.3"),
        ("selection.gates", {"or": ["sharpe >= 0.6", "max_drawdown <= 0.3"]}, "gates"),
        ("selection.gates", None, "gate sharpe >= 0.6"),
        ("data_currency.max_lag", "4d", "data_currency.max_lag"),
        ("data_currency.max_lag", None, "data_currency.max_lag"),
        ("data_currency.min_history", "10d", "data_currency.min_history"),
        ("decision_ttl", 600, "decision_ttl"),
        ("selection.topk", {"total": 9}, "topk.total from 8 to 9"),
        ("selection.topk", None, "topk.total from 8 to none"),
        ("selection.constraints.correlation", {"max_pairwise": 0.9}, "constraints.correlation"),
        ("selection.constraints.exposure", {}, "exposure.max_leverage"),
        ("selection.hysteresis.promote_after", 1, "hysteresis.promote_after"),
        ("selection.hysteresis.demote_after", 5, "hysteresis.demote_after"),
        ("gating_policy.domains.to", "live", "domains.to live"),
        ("gating_policy.dataset_fingerprint", None, "dataset_fingerprint"),
        ("gating_policy.approvals.required", 1, "gating_policy.approvals.required from 2 to 1"),
        ("gating_policy.approvals.live", 1, "gating_policy.approvals.live"),
        ("gating_policy.approvals.policy", 0, "gating_policy.approvals.policy from 1 to 0"),
        ("gating_policy.approvals.roles", ["operator", "author"], "gating_policy.approvals.roles"),
        ("gating_policy.approvals.direct_signals", True, "gating_policy.approvals.direct_signals"),
        ("gating_policy.approvals.required", 3, "gating_policy.approvals.required from 2 to 3"),
        ("gating_policy.approvals.policy", 20, "gating_policy.approvals.policy from 1 to 20"),
        ("gating_policy.approvals.roles", ["owner"], "gating_policy.approvals.roles"),
        ("gating_policy.approvals.expires", "5m", "gating_policy.approvals.expires from 86400 to 300"),
        ("gating_policy.required_signals", [], "required_signals"),
        ("gating_policy.campaign", {"dryrun": "1d"}, "campaign.dryrun"),
        ("gating_policy.edges", {"pre_promotion": {}}, "edges.pre_promotion"),
        ("selection.score", "ulcer", "selection.score from sharpe to ulcer"),
        ("selection.hysteresis.min_dwell", "3h", "selection.hysteresis.min_dwell"),
        (
            "gating_policy.apply",
            {"drain_timeout_ms": 1, "on_rollback": "flatten"},
            "gating_policy.apply.drain_timeout_ms",
        ),
        ("gating_policy.share_policy", "feature-artifacts-only", "gating_policy.share_policy"),
        ("gating_policy.apply", {"on_rollback": "leave"}, "apply.on_rollback leave"),
    ],
)
def test_a_looser_rule_is_named(path: str, value: Any, said: str) -> None:
    found = loosened_policy(policy_from(BEFORE), policy_from(changed(path, value)))
    assert len([item for item in found if item.startswith(said)]) == 1, found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("selection.gates", {"and": ["sharpe >= 0.7", "max_drawdown <= 0.3", "trades >= 5"]}),
        ("data_currency.max_lag", "1d"),
        ("data_currency.min_history", "300d"),
        ("selection.topk", {"total": 1}),
        ("selection.topk", {"total": 8, "by_side": {"long": 3}}),
        ("gating_policy.domains.to", "backtest"),
        ("gating_policy.dataset_fingerprint", "blake3:b"),
        ("gating_policy.required_signals", ["sharpe", "ulcer"]),
        ("gating_policy.campaign", {"dryrun": "9d", "backtest": "1d"}),
    ],
)
def test_a_rule_as_strict_as_before_is_not(path: str, value: Any) -> None:
    assert loosened_policy(policy_from(BEFORE), policy_from(changed(path, value))) == []


def test_a_rollback_that_closes_positions_loosens_nothing() -> None:
    before = policy_from(changed("gating_policy.apply", {"on_rollback": "leave"}))
    assert loosened_policy(before, policy_from(BEFORE)) == []


def test_limits_of_a_world_that_are_raised_or_taken_away_are_named() -> None:
    limits = {"symbols": ["AAPL"], "max_quantity": "10", "max_notional": "100"}
    before = WorldSpec.model_validate(
        {
            "world": "w",
            "order_limits": limits,
            "circuit_breaker": {"max_orders_per_minute": 5, "max_refused_per_minute": 5},
        }
    )
    strict = before.model_dump(mode="json")

    def loosened(**fields: Any) -> list[str]:
        return loosened_world(before, WorldSpec.model_validate({**strict, **fields}))

    assert loosened() == []
    assert loosened(description="other") == []
    assert loosened(allow_live=True) == ["allow_live"]
    assert loosened(data={"presets": []}) == []
    preset = {"name": "p", "source": "csv", "path": "p.csv", "interval": "1d", "streams": {"X": ["X"]}}
    assert loosened(data={"presets": [preset]}) == ["data"]
    assert loosened(on_halt="leave") == ["on_halt leave"]
    assert loosened(order_limits={**limits, "symbols": ["AAPL", "KO"]}) == ["order_limits.symbols"]
    assert loosened(order_limits={**limits, "max_quantity": "9"}) == []
    assert loosened(order_limits={**limits, "prices": {"KO": "1"}}) == ["order_limits.prices"]
    assert len(loosened(order_limits={})) == 3
    assert len(loosened(circuit_breaker={})) == 2
