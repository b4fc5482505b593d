"""The chaos run of pairs of dead processes in its short form; `make chaos ONLY=pairs` has all of them."""

from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.pairs import NO_ROUTER_AFTER_S, PairChaos, all_cases

# The parts of a stack outlive the objects that started them.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


def test_all_cases_are_each_process_and_each_pair() -> None:
    assert len(all_cases()) == 5 + 10
    assert len(set(map(frozenset, all_cases()))) == 15
    assert NO_ROUTER_AFTER_S < 20, "a run waits for it"


def test_a_world_is_halted_and_loses_nothing_with_gateway_and_router_dead(tmp_path: Path) -> None:
    with closing(PairChaos(tmp_path)) as chaos:
        case = chaos.up().run(("gateway", "router"), "up", seed=21, start_counts=False)
    assert case.violations == []
    assert case.halted_by == "store"
    assert case.accepted > 40, case.line()
    assert case.submissions > 0
