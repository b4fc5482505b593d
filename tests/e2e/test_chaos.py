"""The short form of `make chaos`: every kill is survived; and each protection taken out is found."""

from pathlib import Path

import pytest

from qmtl_sdk.runtime.stream import StreamClient
from tests.chaos.stream import Chaos, Forgetful


def reports(
    home: Path,
    seeds: tuple[int, ...],
    relay: str = "activities.events.relay",
    client: type[StreamClient] = StreamClient,
) -> list[str]:
    """The violations of the first of these runs that has any."""
    chaos = Chaos(
        home,
        relay,
        client,
        rest_s=90.0 if client is StreamClient and relay.startswith("activities") else 15.0,
    )
    try:
        chaos.up()
        for seed in seeds:
            report = chaos.run(seed)
            assert report.kills
            if report.violations:
                return report.violations
    finally:
        chaos.close()
    return []


def test_killing_whatever_runs_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    assert reports(tmp_path, (1, 2)) == []


@pytest.mark.timeout(400)
def test_with_the_outbox_taken_out_the_check_fails(tmp_path: Path) -> None:
    violations = reports(tmp_path, (1, 3, 4, 8), relay="tests.chaos.forgetful_relay")
    assert any("missing" in violation or "not come to rest" in violation for violation in violations), (
        violations
    )


@pytest.mark.timeout(400)
def test_with_the_resume_taken_out_the_check_fails(tmp_path: Path) -> None:
    violations = reports(tmp_path, (2, 3), client=Forgetful)
    assert any("missing" in violation for violation in violations), violations
