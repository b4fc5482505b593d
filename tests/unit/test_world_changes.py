"""A file that changes a world: what it may name, and what is shown of it."""

import pytest

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.world_changes import merged_spec, only_changed, parse_update, world_differences
from qmtl_sdk.contracts.worlds import WorldSpec, WorldUpdate

SPEC = WorldSpec.model_validate(
    {
        "world": "w",
        "capital": {"amount": "1000"},
        "order_limits": {"max_quantity": "5", "max_notional": "100"},
        "execution": {"fee_bps": 1.0},
    }
)


def changed(text: str) -> dict[str, tuple[object, object]]:
    found = world_differences(SPEC, merged_spec(SPEC, parse_update(text, SPEC)))
    return {item.key: (item.before, item.after) for item in found}


def test_what_a_file_names_changes_with_all_that_is_below_it() -> None:
    assert changed("capital: {amount: 2500}") == {"capital.amount": ("1000", "2500")}
    assert changed("order_limits: {max_quantity: 7}") == {
        "order_limits.max_quantity": ("5", "7"),
        "order_limits.max_notional": ("100", None),
    }


def test_a_whole_file_that_says_the_same_changes_nothing() -> None:
    whole = "world: w\nclock: wall\nexecution: {fee_bps: 1.0}\ncapital: {amount: 1000}\ndescription: ''\n"
    assert changed(whole) == {}
    assert changed("{}") == {}


def test_only_what_differs_is_sent() -> None:
    update = parse_update("capital: {amount: 1000}\non_halt: leave", SPEC)
    found = only_changed(update, world_differences(SPEC, merged_spec(SPEC, update)))
    assert found.model_dump(exclude_none=True) == {"on_halt": "leave"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("world: other", "the file is not of world w"),
        ("execution: {fee_bps: 2.0}", "execution stays as it was when w was created"),
        ("clock: {replay: {start: 2018-01-01}}", "clock stays as it was when w was created"),
        ("policy: {preset: moderate}", "qmtl world policy add W FILE"),
        ("state: archived", "qmtl world archive W"),
        ("capitol: {amount: 1}", "did you mean 'capital'"),
        ("capital: {amount: -1}", "capital.amount"),
        ("- a", "a world is a mapping of keys"),
    ],
)
def test_what_a_file_may_not_change_is_one_clear_line(text: str, said: str) -> None:
    with pytest.raises(QmtlError, match="E_WORLD_INVALID") as error:
        parse_update(text, SPEC)
    assert said in str(error.value)


def test_data_that_does_not_go_with_the_clock_is_one_clear_line() -> None:
    """A preset that replays, in a world of the wall clock, was an error of the Gateway."""
    preset = {"name": "p", "source": "replay", "path": "x", "interval": "1d", "streams": {"A": ["a"]}}
    change = WorldUpdate.model_validate({"data": {"presets": [preset]}})
    with pytest.raises(QmtlError, match="the world's clock is `wall`") as caught:
        merged_spec(SPEC, change)
    assert caught.value.code == "E_WORLD_INVALID"
