"""The chaos run of orders and applies in its short form; `make chaos` has the long one."""

from pathlib import Path

import pytest

from tests.chaos.orders import OrderChaos


@pytest.mark.timeout(600)
def test_kills_break_no_promise(tmp_path: Path) -> None:
    chaos = OrderChaos(tmp_path)
    try:
        report = chaos.up().run(seed=11, applies=8, kills=4)
    finally:
        chaos.close()
    assert report.violations == []
    assert sum(report.applies.values()) == 8
    assert report.acknowledged > 300
    assert report.orders.get("accepted", 0) > 50, report.line()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("leak", ["stale_epoch"])
def test_a_gateway_that_lacks_a_check_is_found(tmp_path: Path, leak: str) -> None:
    chaos = OrderChaos(tmp_path, leak)
    try:
        report = chaos.up().run(seed=12, applies=1, kills=0, thorough=True)
    finally:
        chaos.close()
    assert report.violations
