"""Hostile inputs of every kind among normal ones, in short; `make chaos ONLY=poison` is the long run."""

from pathlib import Path

import pytest

from tests.chaos.poison import VICTIMS, PoisonChaos


@pytest.mark.timeout(600)
def test_hostile_inputs_among_normal_ones_harm_nobody_else(tmp_path: Path) -> None:
    chaos = PoisonChaos(tmp_path)
    try:
        report = chaos.up().run(seed=5, normal=20, hostile=101)
    finally:
        chaos.close()
    assert report.violations == [], report.line()
    assert report.decided == 20
    assert report.dead_letters > 0
    assert set(report.kills) == set(VICTIMS)
