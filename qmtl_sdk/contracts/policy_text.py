"""Policies as people write them: YAML, presets, and the difference between two versions.

A preset (`conservative`, `moderate`, `aggressive`, `sandbox`) expands to the schema of `policy`; keys that
are written beside it replace the preset's.
"""

from typing import Any

from qmtl_sdk.contracts.documents import mapping_of, validated
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Policy

PRESETS: dict[str, dict[str, Any]] = {
    "sandbox": {"selection": {"gates": {"and": ["sample_days >= 1"]}, "score": "sharpe"}},
    "conservative": {
        "data_currency": {"max_lag": "3d", "min_history": "365d"},
        "selection": {
            "gates": {"and": ["sample_days >= 250", "trades >= 30", "sharpe >= 1.0", "max_drawdown <= 0.2"]},
            "score": "sharpe - ulcer",
            "topk": {"total": 4},
        },
    },
    "moderate": {
        "data_currency": {"max_lag": "3d", "min_history": "250d"},
        "selection": {
            "gates": {"and": ["sample_days >= 250", "trades >= 20", "sharpe >= 0.6", "max_drawdown <= 0.35"]},
            "score": "sharpe + 0.1*win_rate - 0.2*ulcer",
            "topk": {"total": 8},
        },
    },
    "aggressive": {
        "data_currency": {"max_lag": "7d", "min_history": "90d"},
        "selection": {
            "gates": {"and": ["sample_days >= 90", "trades >= 10", "sharpe >= 0.3", "max_drawdown <= 0.5"]},
            "score": "sharpe",
            "topk": {"total": 16},
        },
    },
}
"""Named defaults, from the least to the most demanding by `sharpe`. (Any: values of the policy's YAML.)"""


# Seconds that a new policy gives people to approve, at least. A stored one may give fewer.
_MIN_APPROVAL_S = 300


class Difference(Model):
    """A key with different values in two versions of a policy or a world; None: it is not set.

    (Any: their values.)
    """

    key: str
    before: Any = None
    after: Any = None


def differences(before: Policy, after: Policy) -> list[Difference]:
    """Return the keys that differ, as dotted names, sorted."""
    return dotted_differences(_content(before), _content(after))


def dotted_differences(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    """Do the same for any two mappings of JSON. (Any: its values.)"""
    old, new = _dotted(before), _dotted(after)
    return [
        Difference(key=key, before=old.get(key), after=new.get(key))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def policy_mapping(text: str) -> dict[str, Any]:
    """Return the mapping in a policy's YAML, unchecked. Raises QmtlError: E_POLICY_INVALID."""
    return mapping_of(text, "E_POLICY_INVALID", "policy", "see docs/policy.md for an example")


def policy_from(body: dict[str, Any]) -> Policy:
    """Return a policy from its mapping, with its preset expanded.

    Raises QmtlError: E_POLICY_INVALID, E_EXPRESSION, E_METRIC_UNKNOWN.
    """
    preset = body.get("preset")
    if preset is not None:
        if not isinstance(preset, str) or preset not in PRESETS:
            raise QmtlError(
                "E_POLICY_INVALID",
                f"{str(preset)[:64]!r} is not a preset{nearest(str(preset), list(PRESETS))}",
                f"known: {', '.join(PRESETS)}",
            )
        body = _merged(PRESETS[preset], body)
    policy: Policy = validated(Policy, body, "E_POLICY_INVALID", "policy")
    if policy.gating_policy.approvals.expires < _MIN_APPROVAL_S:
        raise QmtlError(
            "E_POLICY_INVALID",
            f"gating_policy.approvals.expires is {format_duration(policy.gating_policy.approvals.expires)}, "
            "within which nobody can approve",
            f"give people {format_duration(_MIN_APPROVAL_S)} or more",
        )
    return policy


def _content(policy: Policy) -> dict[str, Any]:
    return policy.model_dump(mode="json", by_alias=True, exclude={"world", "version"})


def _dotted(body: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in body.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`.

    Mappings are merged key by key, except gates, which are replaced.
    """
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and key != "gates":
            merged[key] = _merged(before, value)
        else:
            merged[key] = value
    return merged
