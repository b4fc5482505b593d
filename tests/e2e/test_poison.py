"""Hostile inputs of every kind among normal ones, in short; `make chaos ONLY=poison` is the long run."""

from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.poison import VICTIMS, PoisonChaos


@pytest.mark.timeout(600)
def test_hostile_inputs_among_normal_ones_harm_nobody_else(tmp_path: Path) -> None:
    with closing(PoisonChaos(tmp_path)) as chaos:
        report = chaos.up().run(seed=5, normal=20, hostile=101)
    assert report.violations == [], report.line()
    assert report.decided == 20
    assert report.dead_letters > 0
    assert set(report.kills) == set(VICTIMS)
