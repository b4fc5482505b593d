"""A signal's target weight does not flap, and is the same in batch, bar by bar and live."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmtl_sdk import Node, QmtlError, StreamInput
from qmtl_sdk.data.bars import Bars
from qmtl_sdk.transforms.position_target import DEFAULT_THRESHOLDS, PositionTargetNode, Thresholds
from tests.support.frames import bars
from tests.support.pipeline import computed

SIGNAL = StreamInput(tags=["alpha"], interval=60)
# Steps of 0.1 meet the default thresholds exactly.
SIGNALS = st.lists(
    st.one_of(st.integers(-10, 10).map(lambda n: n / 10), st.just(float("nan"))), min_size=12, max_size=60
)


def targets(signal: list[float], period: int = 5, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> list[float]:
    """The targets from the first bar on that has a whole period."""
    node = PositionTargetNode(SIGNAL, thresholds, long_weight=0.5, short_weight=-0.25, period=period)
    data: dict[str, Bars] = {SIGNAL.node_id: bars(signal)}
    output = computed([node], data)[node.node_id]
    found: list[float] = output.bars.columns["target_weight"][output.first :].tolist()
    return found


def state_machine(signal: list[float], th: Thresholds) -> float:
    """The target after a window, with a state that begins flat."""
    state = 0.0
    for value in signal:
        if state > 0 and value <= th.long_exit:
            state = 0.0
        if state < 0 and value >= th.short_exit:
            state = 0.0
        if value >= th.long_enter:
            state = 0.5
        if value <= th.short_enter:
            state = -0.25
    return state


@settings(max_examples=150, deadline=None)
@given(SIGNALS, st.integers(1, 10))
def test_a_target_is_that_of_a_state_machine_over_its_period(signal: list[float], period: int) -> None:
    windows = [signal[end - period : end] for end in range(period, len(signal) + 1)]
    assert targets(signal, period) == [state_machine(window, DEFAULT_THRESHOLDS) for window in windows]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.21, 0.59), min_size=9, max_size=9), st.sampled_from([1, -1]))
def test_a_signal_that_oscillates_inside_its_band_changes_nothing(inside: list[float], side: int) -> None:
    held = targets([0.0] * 9 + [side * 0.6] + [side * value for value in inside], period=10)
    assert held == [0.5 if side > 0 else -0.25] * 10
    flat = targets([0.0] * 10 + [side * value for value in inside], period=10)
    assert set(flat) == {0.0}


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ([0.59, 0.6], 0.5),
        ([0.6, 0.21], 0.5),
        ([0.6, 0.2], 0.0),
        ([0.6, 0.2, 0.59], 0.0),
        ([-0.6, -0.21], -0.25),
        ([-0.6, -0.2], 0.0),
        ([0.6, float("nan"), 0.3], 0.5),
        ([0.6, -0.6], -0.25),
        ([-0.6, 0.3], 0.0),  # beyond the short's exit, and not at the long's entry
        ([0.6, -0.3, 0.3], 0.0),  # below the long's exit meanwhile
        ([0.6, 0.3, 0.3, 0.3, 0.3, 0.3], 0.0),  # not confirmed within the period of 5
    ],
)
def test_worked_signals(signal: list[float], expected: float) -> None:
    assert targets([0.0] * 5 + signal)[-1] == expected


def test_thresholds_without_a_band_are_one_threshold() -> None:
    thresholds = Thresholds(long_enter=0.5, long_exit=0.5, short_enter=-1, short_exit=0.5)
    assert targets([0.4, 0.5, 0.4, 0.5], 1, thresholds) == [0.0, 0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"long_weight": 1.5}, "long_weight is 1.5 [E_NODE_OPTION] → keep it between 0 and 1"),
        ({"long_weight": float("nan")}, "long_weight is nan"),
        ({"short_weight": 0.25}, "short_weight is 0.25 [E_NODE_OPTION] → keep it between -1 and 0"),
        ({"long_weight": 0, "short_weight": 0}, "both weights are 0"),
        ({"long_weight": "half"}, "long_weight is 'half'"),
    ],
)
def test_weights_that_are_none_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(QmtlError) as caught:
        PositionTargetNode(SIGNAL, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            (0.2, 0.6, -0.6, -0.2),
            "long_enter 0.2, long_exit 0.6, short_exit -0.2 and short_enter -0.6 do not",
        ),
        ((0.6, 0.2, -0.2, -0.6), "do not descend"),
        ((0.6, -0.3, -0.6, -0.2), "do not descend"),
        ((0.0, 0.0, 0.0, 0.0), "do not descend"),
        ((0.6, 0.2, -0.6, float("nan")), "short_exit is nan"),
    ],
)
def test_thresholds_in_the_wrong_order_are_refused(values: tuple[float, ...], said: str) -> None:
    with pytest.raises(QmtlError) as caught:
        Thresholds(*values)
    assert caught.value.code == "E_NODE_OPTION"
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "thresholds", [None, 0.5, {"long_enter": 0.6}, {"enter": 0.6}, {}, [0.6, 0.2, -0.6, -0.2]]
)
def test_what_are_no_thresholds_is_one_clear_error(thresholds: Any) -> None:
    with pytest.raises(QmtlError) as caught:
        PositionTargetNode(SIGNAL, thresholds)
    assert str(caught.value) == (
        f"target: thresholds is {thresholds!r} [E_NODE_OPTION] → "
        "pass Thresholds(long_enter=…, long_exit=…, short_enter=…, short_exit=…)"
    )


def test_thresholds_may_be_a_mapping() -> None:
    node = PositionTargetNode(SIGNAL, asdict(DEFAULT_THRESHOLDS))
    assert node.node_id == PositionTargetNode(SIGNAL).node_id


def test_long_only_needs_no_thresholds_for_the_short_side() -> None:
    """`short_weight=0` is flat wherever the signal is short."""
    node = PositionTargetNode(SIGNAL, short_weight=0, period=2)
    output = computed([node], {SIGNAL.node_id: bars([0.0, 0.7, 0.5, -1.0, -1.0, 0.7])})[node.node_id]
    np.testing.assert_array_equal(output.bars.columns["target_weight"][1:], [1.0, 1.0, 0.0, 0.0, 1.0])


def test_a_signal_is_a_node() -> None:
    with pytest.raises(QmtlError, match="is not a node") as caught:
        PositionTargetNode("alpha")  # type: ignore[arg-type]
    assert caught.value.code == "E_NODE_INPUT"


def test_every_option_is_part_of_the_identity_and_the_name_is_not() -> None:
    def node_id(name: str = "x", period: int = 20, weight: float = 1.0, enter: float = 0.6) -> str:
        thresholds = Thresholds(enter, 0.2, -0.6, -0.2)
        return PositionTargetNode(SIGNAL, thresholds, long_weight=weight, period=period, name=name).node_id

    assert node_id() == node_id(name="y") == PositionTargetNode(SIGNAL).node_id
    assert len({node_id(), node_id(period=21), node_id(weight=0.5), node_id(enter=0.7)}) == 4


def test_the_signal_may_be_any_node_with_one_column() -> None:
    doubled = Node(SIGNAL, lambda view: view[SIGNAL].values * 2, name="doubled")
    node = PositionTargetNode(doubled, period=1)
    output = computed([node], {SIGNAL.node_id: bars([0.0, 0.3, 0.1])})[node.node_id]
    np.testing.assert_array_equal(output.bars.columns["target_weight"], [0.0, 1.0, 0.0])
