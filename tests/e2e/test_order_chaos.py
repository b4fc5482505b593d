"""The chaos run of orders and applies in its short form; `make chaos` has the long one."""

from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.orders import OrderChaos
from tests.chaos.rebalancing import RebalancingChaos
from tests.chaos.routing import RoutingChaos
from tests.chaos.spot import SpotChaos
from tests.chaos.targets import TargetChaos
from tests.chaos.twofold import TwofoldChaos
from tests.support.postgres import postgres_database


@pytest.mark.timeout(600)
def test_kills_break_no_promise(tmp_path: Path) -> None:
    with closing(OrderChaos(tmp_path)) as chaos:
        report = chaos.up().run(seed=11, applies=8, kills=4, answers=301)
    assert report.violations == []
    assert sum(report.applies.values()) == 8
    assert report.acknowledged > 300
    assert report.orders.get("accepted", 0) > 50, report.line()


@pytest.mark.parametrize("leak", ["stale_epoch"])
def test_a_gateway_that_lacks_a_check_is_found(tmp_path: Path, leak: str) -> None:
    with closing(OrderChaos(tmp_path, leak)) as chaos:
        report = chaos.up().run(seed=12, applies=2, kills=0, answers=300)
    assert [found for found in report.violations if leak in found], report.violations


@pytest.mark.timeout(600)
def test_two_of_each_process_over_one_database_break_no_promise(tmp_path: Path, postgres: str) -> None:
    with postgres_database(postgres, "twofold") as dsn, closing(TwofoldChaos(tmp_path, dsn)) as chaos:
        report = chaos.up().run(seed=13, applies=3, kills=3, answers=101)
    assert report.violations == []
    assert sum(report.applies.values()) == 3
    assert report.acknowledged > 100, report.line()


def test_a_router_that_is_killed_keeps_log_and_exchange_in_agreement(tmp_path: Path) -> None:
    """The long form also has a router that takes an order which the exchange does not know yet for lost."""
    with closing(RoutingChaos(tmp_path, 3)) as chaos:
        report = chaos.run(6, placed=21)
    assert report.violations == [], report.line()
    assert report.kills > 0
    assert report.placed > 20, report.line()


@pytest.mark.parametrize("forgets", [False, True])
def test_a_strategy_of_targets_holds_what_it_says_at_rest(tmp_path: Path, forgets: bool) -> None:
    """One whose orders forget what it holds must be found."""
    with closing(TargetChaos(tmp_path, 5, forgets)) as chaos:
        report = chaos.run(5, placed=9)
    assert bool(report.violations) == forgets, report.line()


@pytest.mark.timeout(300)
def test_kills_leave_rebalancings_whole(tmp_path: Path) -> None:
    """Orders neither doubled nor missing, and a ledger that is the exchange's. All three are approved."""
    with closing(RebalancingChaos(tmp_path, 57)) as chaos:
        report = chaos.up().run(3)
    assert report.violations == [], report.line()
    assert (report.runs, sum(report.outcomes.values())) == (3, 3)
    assert sum(map(len, report.kills.values())) > 0, report.line()
    assert report.placed > 10, report.line()


@pytest.mark.parametrize("nameless", [False, True])
def test_ledger_and_exchange_agree_through_ccxt(tmp_path: Path, nameless: bool) -> None:
    """A retry that has no name in common with the attempt before it must be found."""
    with closing(SpotChaos(tmp_path, 7, nameless)) as chaos:
        report = chaos.run(25)
    assert bool(report.violations) == nameless, report.line()
    assert set(report.kills) == {"router", "exchange"}
    assert nameless or (report.doubled, report.trades > 10) == (0, True), report.line()
