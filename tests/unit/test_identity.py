"""NodeIDs, keys and checksums: what they depend on, and what they must not."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmtl_sdk import MatchMode, Node, QmtlError, StreamInput, TagQueryNode
from qmtl_sdk.contracts.canonical import canonical_json, flatten, hash_parts
from qmtl_sdk.contracts.identity import (
    CanonicalNodeSpec,
    ValidationScope,
    compute_key,
    eval_key,
    node_ids_crc32,
    strategy_id,
)

SPEC = CanonicalNodeSpec(
    "Node",
    60,
    30,
    {"window": 5, "deep": {"x": 1.5, "y": [1, 2]}},
    ("blake3:bb", "blake3:aa"),
    "v1",
    "blake3:cc",
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
params = st.dictionaries(st.text(max_size=6), json_values, max_size=5)


def test_golden_canonical_form() -> None:
    expected = (
        b'{"code_hash":"blake3:cc","dependencies":["blake3:aa","blake3:bb"],"interval":60,"node_type":"Node",'
        b'"params":{"deep.x":1.5,"deep.y":[1,2],"window":5},"period":30,"schema_compat_id":"v1"}'
    )
    assert SPEC.canonical() == expected


@pytest.mark.parametrize(
    ("found", "golden"),
    [
        (SPEC.node_id(), "blake3:9fb4faf635a25bf35f12e0b4f804b76b6fbb0aeee248e58be70c1c4d208f5f1c"),
        (
            compute_key("blake3:aa", "w", "backtest", "2024-01-01T00:00:00+00:00", ""),
            "blake3:c4f2542e6536a7dd2cb80aed54e06d78a84c97d640ba9d6048811c77abe0c3aa",
        ),
        (
            eval_key(ValidationScope("blake3:aa", "w", "backtest", "c", "f", "1", "r")),
            "blake3:8b9b8bdaef464c8439ac87d8b34bcef598708f8c5f37eeaccbd1df2b5dd1872e",
        ),
        (str(node_ids_crc32(["blake3:bb", "blake3:aa"])), "3549975724"),
        (
            strategy_id(["b", "a"], [("a", "b")]),
            "strategy:7d11ea70460cc3ef805cfccadf080181c7c3d0db66610b7ac6b2e216bd64c52b",
        ),
    ],
)
def test_golden_vectors(found: str, golden: str) -> None:
    assert found == golden


@pytest.mark.parametrize(
    ("a", "b"), [(1, 1.0), (-0.0, 0), (0.1, 0.1), (1e3, 1000), ({"b": 1, "a": 2}, {"a": 2, "b": 1})]
)
def test_one_meaning_has_one_text(a: object, b: object) -> None:
    assert canonical_json(a) == canonical_json(b)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    with pytest.raises(QmtlError, match="E_PARAM_NOT_FINITE"):
        canonical_json({"a": [value]})


@pytest.mark.parametrize("value", [{1: 2}, object(), {"a": {1, 2}}, 2**70])
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(QmtlError, match="E_PARAM_TYPE"):
        canonical_json(value)


@given(json_values)
def test_canonical_text_means_the_same(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(params, st.randoms())
def test_node_id_does_not_change_with_key_order(found: dict[str, object], random: object) -> None:
    keys = list(found)
    random.shuffle(keys)  # type: ignore[attr-defined]
    shuffled = {key: found[key] for key in keys}
    assert (
        CanonicalNodeSpec("Node", 60, 1, found).node_id()
        == CanonicalNodeSpec("Node", 60, 1, shuffled).node_id()
    )


@given(params, params)
def test_different_params_are_different_nodes(a: dict[str, object], b: dict[str, object]) -> None:
    same = CanonicalNodeSpec("Node", 60, 1, a).node_id() == CanonicalNodeSpec("Node", 60, 1, b).node_id()
    assert same == (canonical_json(a) == canonical_json(b))


@given(st.lists(st.text(max_size=5), min_size=1, max_size=6))
def test_node_id_does_not_change_with_the_order_of_dependencies(found: list[str]) -> None:
    assert (
        CanonicalNodeSpec("Node", 60, 1, {}, tuple(found)).node_id()
        == CanonicalNodeSpec("Node", 60, 1, {}, tuple(reversed(found))).node_id()
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"node_type": "Other"},
        {"interval": 61},
        {"period": 31},
        {"params": {"window": 6}},
        {"dependencies": ("blake3:aa",)},
        {"schema_compat_id": "v2"},
        {"code_hash": "blake3:cd"},
    ],
)
def test_node_id_changes_with_every_semantic_field(changed: dict[str, object]) -> None:
    fields = {name: getattr(SPEC, name) for name in SPEC.__slots__}
    assert CanonicalNodeSpec(**{**fields, **changed}).node_id() != SPEC.node_id()  # type: ignore[arg-type]


def test_a_dot_in_a_key_is_not_a_level() -> None:
    assert flatten({"a": {"b": 1}}) != flatten({"a.b": 1})
    assert flatten({"a\\": {"b": 1}}) != flatten({"a\\.b": 1})


def test_a_separator_inside_a_field_makes_no_two_specs_equal() -> None:
    """Trap 1: fields joined by `|`."""
    assert hash_parts("a|b", "c") != hash_parts("a", "b|c")
    assert hash_parts("ab", "") != hash_parts("a", "b")
    assert CanonicalNodeSpec("A|60", 60, 1).node_id() != CanonicalNodeSpec("A", 60, 1, {"x": "60|"}).node_id()


def test_the_crc_of_two_nodes_is_not_that_of_one() -> None:
    """Trap 1: joined without a separator."""
    assert node_ids_crc32(["a", "b"]) != node_ids_crc32(["ab"])
    assert node_ids_crc32(["a", "b"]) == node_ids_crc32(["b", "a"])


@given(
    st.lists(st.text(max_size=6), min_size=5, max_size=5),
    st.lists(st.text(max_size=6), min_size=5, max_size=5),
)
def test_compute_keys_are_equal_only_for_equal_scopes(a: list[str], b: list[str]) -> None:
    assert (compute_key(*a) == compute_key(*b)) == (a == b)


def test_streams_of_two_instruments_are_two_nodes() -> None:
    """Trap 1."""
    btc, eth = (StreamInput(tags=[coin, "price"], interval="1m", period=30) for coin in ("BTC", "ETH"))
    assert btc.node_id != eth.node_id


@pytest.mark.parametrize(
    "other", [{"instrument": "X"}, {"fields": ["close"]}, {"interval": 120}, {"period": 5}, {"tags": ["BTC"]}]
)
def test_what_selects_a_streams_data_is_part_of_it(other: dict[str, object]) -> None:
    options = {"tags": ["BTC", "price"], "interval": 60, "period": 30}
    assert StreamInput(**options).node_id != StreamInput(**{**options, **other}).node_id  # type: ignore[arg-type]


def test_names_and_label_tags_never_enter() -> None:
    price = StreamInput(tags=["BTC"], interval=60)
    plain = Node(price, lambda view: view[price].values * 2)
    assert StreamInput(tags=["BTC"], interval=60, name="other").node_id == price.node_id
    named = [
        Node(price, plain.compute_fn, name=name, tags=tags) for name, tags in (("a", ()), ("b", ("x", "y")))
    ]
    assert {node.node_id for node in named} == {plain.node_id}


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_closure_value_makes_another_node(a: float, b: float) -> None:
    """Trap 1: bands of 2 and of 3 deviations are two nodes."""
    price = StreamInput(tags=["BTC"], interval=60)

    def band(width: float) -> Node:
        return Node(price, lambda view: view[price].values * width)

    assert (band(a).node_id == band(b).node_id) == (a == b)


def test_which_input_plays_which_part_is_part_of_the_node() -> None:
    fast, slow = (StreamInput(tags=[tag], interval=60) for tag in ("fast", "slow"))

    def spread(a: Node, b: Node) -> Node:
        return Node([a, b], lambda view: view[a].values - view[b].values)

    assert spread(fast, slow).node_id != spread(slow, fast).node_id


def test_a_tag_query_is_its_query_alone() -> None:
    query = TagQueryNode(query_tags=["b", "a", "a"], interval="1h", period=24, match_mode=MatchMode.ANY)
    assert query.params == {"query_tags": ["a", "b"], "match_mode": "any", "interval": 3600}
    assert query.node_id == TagQueryNode(query_tags=["a", "b"], interval=3600, period=24).node_id
    assert (
        query.node_id
        != TagQueryNode(query_tags=["a", "b"], interval=3600, period=24, match_mode="all").node_id
    )


def test_intervals_are_one_in_every_form() -> None:
    ids = {StreamInput(tags=["x"], interval=form, period=30).node_id for form in (60, "60", "60s", "1m")}
    assert len(ids) == 1
