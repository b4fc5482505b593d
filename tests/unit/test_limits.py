"""Everything that a client may send has a limit, in the document that clients read.

The test walks every parameter and every body of every route, and the frames of the stream.
"""

import importlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from activities.settings import Settings
from api.gateway import create_app
from api.metrics import count_refusal, count_unknown, exposition
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.allocations import AllocationUpdate
from qmtl_sdk.contracts.dag import NodeRecord
from qmtl_sdk.contracts.durations import seconds
from qmtl_sdk.contracts.expressions import evaluate, parse
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.position_limits import PositionLimits
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from qmtl_sdk.contracts.stream import ClientFrame
from qmtl_sdk.contracts.worlds import LAST_TIME, Clock, Replay, WorldSpec, parse_world
from tests.support import ROOT

Schema = dict[str, Any]

_WEIGHTS = ["after", "before", "strategies{}", "weight"]
_SCHEDULE = ["cap", "target", "tolerance", "width"]
_FEES = ["bps", "maker_bps", "minimum", "per_share", "taker_bps", "traded", "volume_share"]
_RULES = ["cost_bps", "lot", "margin_rate", "min_trade_notional", "tick"]
_LIMITS = ["cash", "equity", "max_gross_notional", "max_net_notional", "max_turnover", "min_margin_headroom"]
_FIGURES = [
    "cost",
    "from_quantity",
    "mark",
    "notional",
    "price_by_symbol{}",
    "target_quantity",
    "to_quantity",
]

EXEMPT = {
    ".quantity: maxLength": "max_digits limits a decimal that is written as text",
    ".reference_price: maxLength": "as above",
    ".price: maxLength": "as above",
    ".prices{}: maxLength": "as above",
    ".fee: maxLength": "as above",
    ".fee_units: maxLength": "as above",
    ".amount: maxLength": "as above",
    ".ratio: maxLength": "as above",
    ".max_quantity: maxLength": "as above",
    ".max_notional: maxLength": "as above",
    "(Target).value: maxLength": "as above",
    **{f".{name}: maxLength": "as above" for name in PositionLimits.model_fields},
    **{f".{name}: maxLength": "as above" for name in (*_WEIGHTS, *_SCHEDULE, *_FEES)},
    **{f".{name}: maxLength": "as above" for name in (*_RULES, *_LIMITS, *_FIGURES)},
    ".options{}: minimum": "any finite number may be an option of a package",
    ".options{}: maximum": "as above",
    "(QueueMessage).values{}: minimum": "any finite number may be an output of a node",
    "(QueueMessage).values{}: maximum": "as above",
    "(WorldCreate).spec: maxProperties": "WorldSpec validates it, and is walked below",
    "(WorldCreate).spec{key}: maxLength": "as above",
    "(WorldCreate).policy: maxProperties": "Policy validates it, and is walked below",
    "(WorldCreate).policy{key}: maxLength": "as above",
    "(PolicyReplay).policy: maxProperties": "as above",
    "(PolicyReplay).policy{key}: maxLength": "as above",
    "post /worlds/{world_id}/policies body: maxProperties": "as above",
    "post /worlds/{world_id}/policies body{key}: maxLength": "as above",
}
"""The ends of places that need no limit in the document, each with the reason."""


def document() -> Schema:
    return create_app(Settings(_env_file=None)).openapi()  # type: ignore[call-arg]


def unlimited(schema: Schema, where: str, parts: Schema, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield each place of a schema that lacks a limit, with the limit that it lacks."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in seen:
            yield from unlimited(parts[name], f"{where}({name})", parts, seen | {name})
        return
    for word in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(word, ()):
            yield from unlimited(inner, where, parts, seen)
    if "enum" in schema or "const" in schema:
        return
    kind = schema.get("type")
    if (
        kind == "string"
        and not {"maxLength", "pattern"} & schema.keys()
        and schema.get("format") != "date-time"
    ):
        yield f"{where}: maxLength"
    if (
        kind == "string"
        and "pattern" in schema
        and "maxLength" not in schema
        and any(sign in schema["pattern"] for sign in "*+")
    ):
        yield f"{where}: maxLength"
    if kind in ("integer", "number"):
        for limits in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if not schema.keys() & set(limits):
                yield f"{where}: {limits[0]}"
    if kind == "array":
        if "maxItems" not in schema:
            yield f"{where}: maxItems"
        for inner in [schema["items"]] if "items" in schema else schema.get("prefixItems", []):
            yield from unlimited(inner, f"{where}[]", parts, seen)
    if kind == "object":
        for name, inner in schema.get("properties", {}).items():
            yield from unlimited(inner, f"{where}.{name}", parts, seen)
        more = schema.get("additionalProperties")
        if more and "properties" not in schema:
            if "maxProperties" not in schema:
                yield f"{where}: maxProperties"
            yield from unlimited(
                schema.get("propertyNames", {"type": "string"}), f"{where}{{key}}", parts, seen
            )
            if isinstance(more, dict):
                yield from unlimited(more, f"{where}{{}}", parts, seen)


def places() -> Iterator[str]:
    found = document()
    parts = found["components"]["schemas"]
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                yield from unlimited(parameter["schema"], f"{method} {path} {parameter['name']}", parts)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                yield from unlimited(content["schema"], f"{method} {path} body", parts)
    for name, schema in (
        ("frame", ClientFrame.json_schema()),
        ("spec", WorldSpec.model_json_schema()),
        ("policy", Policy.model_json_schema()),
        ("allocations", AllocationUpdate.model_json_schema()),
        ("rebalancing", MultiWorldRebalanceRequest.model_json_schema()),
        ("rebalance plan", RebalancePlan.model_json_schema()),
    ):
        yield from unlimited(schema, name, schema["$defs"])


def test_everything_that_a_client_may_send_has_a_limit() -> None:
    found = set(places())
    assert sorted(place for place in found if not place.endswith(tuple(EXEMPT))) == []
    unused = [end for end in EXEMPT if not any(place.endswith(end) for place in found)]
    assert unused == [], "exempt and no longer there"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "string", "pattern": "^[a-z]+$"},
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "boolean"}},
        {"type": "object", "additionalProperties": {"type": "boolean"}, "propertyNames": {"maxLength": 5}},
        {"anyOf": [{"type": "null"}, {"type": "number"}]},
        {"type": "object", "properties": {"a": {"type": "string"}}},
    ],
)
def test_the_walk_finds_what_lacks_a_limit(schema: Schema) -> None:
    assert list(unlimited(schema, "x", {}))


@pytest.mark.parametrize(
    "score", ["sharpe * 1e308 * 1e308", "1e308 + 1e308", "(1e308 + 1e308) - 1e308", "1 / 0"]
)
def test_a_score_that_overflows_is_missing(score: str) -> None:
    """Infinity is in no decision: the judgment of the world failed with it for ever."""
    assert evaluate(parse(score), {"sharpe": 3.0}) is None


def test_a_policy_within_its_limits_can_always_be_evaluated() -> None:
    for text in ("sharpe" + " + 1" * 90, "not " * 90 + "sharpe > 1", "(" * 49 + "sharpe" + ")" * 49):
        evaluate(parse(text), {"sharpe": 1.0})
    deep = "sharpe" + "+1" * 490
    for text in (deep, "not " * 200 + "sharpe > 1", "1e999", "(" * 60 + "1" + ")" * 60, "1" * 1001):
        with pytest.raises(QmtlError, match="E_EXPRESSION"):
            parse(text)


def test_a_policy_has_a_limit_of_gates() -> None:
    for gates in (
        ["sharpe > 1"] * 101,
        [{"or": ["sharpe > 1"] * 51}, {"and": ["sharpe > 1"] * 51}],
    ):
        with pytest.raises(QmtlError, match="E_POLICY_INVALID"):
            policy_from({"selection": {"gates": {"and": gates}}})
    for preset in ([], {}, 5, "x" * 10_000):
        with pytest.raises(QmtlError, match="E_POLICY_INVALID") as caught:
            policy_from({"preset": preset})
        assert len(str(caught.value)) < 300
    with pytest.raises(QmtlError) as caught:
        policy_from({"x" * 100_000: 1})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "written", [float("inf"), float("nan"), "9" * 5000 + "d", "9" * 30, 10**12, -1, "99999999w", True]
)
def test_a_duration_is_at_most_a_century(written: float | str) -> None:
    with pytest.raises(QmtlError, match="E_INTERVAL") as caught:
        seconds(written)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("written", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1" * 1000])
def test_a_time_is_one_that_nanoseconds_hold(written: str) -> None:
    with pytest.raises(QmtlError, match="E_WORLD_INVALID"):
        parse_world(f"world: w\nclock: {{replay: {{start: '{written}'}}}}")


def test_a_fast_replay_stops_at_the_last_time() -> None:
    """Its time overflowed, and judging was repeated for ever."""
    began = datetime(2024, 1, 1, tzinfo=UTC)
    clock = Clock(replay=Replay(start=began, speed=1e9))
    assert clock.now(began, began + timedelta(days=3650)) == LAST_TIME
    with pytest.raises(ValidationError):
        Replay(start=began, speed=float("inf"))


@pytest.mark.parametrize(
    "params",
    [
        {"tags": 5},
        {"tags": [["a"]]},
        {"tags": [None]},
        {"tags": "x" * 65},
        {"instrument": ["a"]},
        {"deep": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]},
        {f"p{n}": n for n in range(201)},
    ],
    ids=["number", "nested", "none", "text", "instrument", "deep", "many"],
)
def test_parameters_that_services_read_are_checked(params: Schema) -> None:
    """They raised a TypeError where streams are bound, which is an error of the Gateway."""
    body = {"node_id": "x", "node_type": "StreamInput", "interval": 60, "period": 1, "params": params}
    with pytest.raises(ValidationError):
        NodeRecord.model_validate(body)


def test_a_label_of_a_metric_takes_few_values() -> None:
    """Each value of a label is a series for the rest of the process's life."""
    before = len(exposition())
    for number in range(500):
        count_refusal(QmtlError("E_NODE_ID_MISMATCH", "no", node_type=f"Type{number}"))
        count_refusal(QmtlError("E_NODE_ID_FIELDS", "no", node_type=f"Type{number}", field="code_hash"))
        count_unknown(f"type.{number}")
    assert len(exposition()) - before < 6000


def test_the_documented_limits_are_those_of_the_code() -> None:
    rows = re.findall(
        r"^\|.*\| (\d+)[^|]*\| `([\w./]+)(?::(\w+))?` \|$", (ROOT / "docs/limits.md").read_text(), re.M
    )
    assert len(rows) > 20
    config = Settings(_env_file=None).gateway  # type: ignore[call-arg]
    for written, place, name in rows:
        module = place.removesuffix(".py").replace("/", ".")
        found = (
            getattr(importlib.import_module(module), name)
            if name
            else getattr(config, place.removeprefix("gateway."))
        )
        assert int(written) == found, place
