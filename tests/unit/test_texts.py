"""Text and JSON from outside: what is too deep, too large or not printable is refused or made harmless."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.canonical import MAX_DEPTH, canonical_json, depth_exceeds, read_json
from qmtl_sdk.contracts.dag import NodeRecord
from qmtl_sdk.contracts.orders import Order
from qmtl_sdk.contracts.policy_text import policy_mapping
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionOpen
from qmtl_sdk.contracts.submission import EvidenceRef, LeaseFailure, StrategySubmit, SubmissionMeta
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.contracts.worlds import parse_world

HOSTILE = ("\x1b[2J", "a\nb", "\u202egnp", "a\0", "\ud800", "\u200b", "\x9b31m")


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 200, 1000, 5000, 500_000])
def test_json_that_is_too_deep_is_a_value_error(levels: int) -> None:
    """Python's own parser raises RecursionError, which no handler of bad input expects."""
    with pytest.raises(ValueError, match="deep|depth"):
        read_json(nested(levels))
    with pytest.raises(ValueError, match="deep|depth"):
        read_json('{"a": ' * levels + "1" + "}" * levels)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '"\\ud800"', "1e999", "[1,", "", "\ud800", "{'a': 1}"])
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        read_json(text)


def test_what_is_deep_enough_is_read_and_can_be_written_and_read_again() -> None:
    """A reader that is stricter than the writer would meet rows that it can never read."""
    value: Any = read_json(nested(MAX_DEPTH))
    assert depth_exceeds(value, MAX_DEPTH - 1)
    assert not depth_exceeds(value, MAX_DEPTH)
    ref = EvidenceRef(returns_hash="blake3:" + "0" * 64, precheck={"deep": value})
    assert EvidenceRef.model_validate_json(ref.model_dump_json()) == ref
    assert json.loads(canonical_json({"params": value})) == {"params": value}
    for _ in range(5000):
        value = [value]
    with pytest.raises(QmtlError, match="E_PARAM_TYPE"):
        canonical_json(value)


def test_a_dag_as_text_that_is_too_deep_is_refused() -> None:
    for text in (nested(5000), 5, None):
        with pytest.raises(ValidationError):
            StrategySubmit.model_validate({"world_id": "w", "dag_json": text, "node_ids_crc32": 0})


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [BOMB, MERGES, "a: " + nested(3000), "a: " + nested(100), "a: &a [*a]", "x" * 2_000_000, "a: 2024-99-99"],
    ids=["aliases", "merge keys", "deep", "less deep", "circular", "long", "bad date"],
)
def test_a_policy_or_world_that_stands_for_too_much_is_one_clear_line(text: str) -> None:
    for read, code in ((policy_mapping, "E_POLICY_INVALID"), (parse_world, "E_WORLD_INVALID")):
        with pytest.raises(QmtlError) as caught:
            read(text)
        assert caught.value.code == code
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", HOSTILE)
def test_names_that_no_terminal_should_print_are_refused(text: str) -> None:
    node = {"node_id": "x", "node_type": "Node", "interval": 1, "period": 1}
    order = {
        "order_id": "order:1234",
        "world_id": "w",
        "strategy_id": "s",
        "execution_domain": "dryrun",
        "epoch": 1,
        "symbol": "A",
        "side": "buy",
        "quantity": "1",
    }
    session = {"world_id": "w", "strategy_id": "s", "runner": "r"}
    for model, body in (
        (NodeRecord, {**node, "name": text}),
        (NodeRecord, {**node, "tags": [text]}),
        (NodeRecord, {**node, "node_type": text}),
        (SubmissionMeta, {"name": text}),
        (Order, {**order, "symbol": text}),
        (Order, {**order, "order_id": f"12345678{text}"}),
        (SessionOpen, {**session, "host": text}),
        (SessionOpen, {**session, "runner": text}),
    ):
        with pytest.raises(ValidationError):
            model.model_validate(body)


@pytest.mark.parametrize("text", HOSTILE[:4])
def test_a_report_with_such_signs_is_stored_without_them(text: str) -> None:
    assert SessionHeartbeat(fault=text).fault.isprintable()
    assert SessionHeartbeat(reason=text).reason.isprintable()
    assert LeaseFailure(code="E_X", message=text, final=True).message.replace("\n", "").isprintable()


def test_printable_keeps_what_may_be_printed() -> None:
    assert printable("Zürich – 株 🚀") == "Zürich – 株 🚀"
    assert printable("a\ud800b\0c\nd" + "e" * 9, 10) == "a�b�c�deee"
    assert printable("a\nb\x1b", keep="\n") == "a\nb�"
