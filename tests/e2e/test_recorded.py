"""A command that is recorded while Temporal is away says so, with an exit code of its own.

"Try again" was said, and the command came alive by itself later.
"""

from pathlib import Path

from qmtl_sdk import Runner
from tests.support import ROOT
from tests.support.command import Person
from tests.support.machine import Machine, wait_for
from tests.support.strategies import Trend
from tests.support.worlds import POLICY, world

GATING = {
    "domains": {"from": "backtest", "to": "dryrun"},
    "share_policy": "feature-artifacts-only",
    "approvals": {"required": 1},
}


def test_what_is_recorded_says_so_and_how_to_take_it_back(own_machine: Machine, tmp_path: Path) -> None:
    machine = own_machine
    machine.start_temporal()
    machine.start_worker()
    machine.start_gateway("tests.e2e.impatient_gateway")
    with machine.client() as client:
        client.create_world(world(), POLICY)
        first = Runner.submit(Trend("KO"), world="equities", config=machine.config, run=False)
        gating = {**GATING, "dataset_fingerprint": client.fingerprints("equities")[0]}
        client.add_policy("equities", {**POLICY, "gating_policy": gating})
        client.decide("equities", "decide-once")
    in_haste = {"QMTL_TEST__TEST_MODE": "true"}  # a command tries again for 2 s, and not for 30
    person = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home), **in_haste)

    def types(code: int, said: str, *words: str) -> str:
        done = person.types(*words)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    machine.kill("temporal")
    said = types(
        5,
        "the apply is recorded as run-0; it starts when Temporal is back",
        *["world", "apply", "equities", "--run-id", "run-0"],
    )
    assert "qmtl world abort equities run-0 takes it back" in said
    said = types(
        5,
        "the approval of run-0 is recorded; it counts when Temporal is back",
        *["world", "approve", "--yes", "equities", "run-0", "--as", "ana"],
    )
    assert "qmtl world abort equities run-0 takes the apply back" in said
    said = types(5, "the abort of run-0 is recorded", *["world", "abort", "equities", "run-0"])
    assert "127.0.0.1" not in said
    types(3, "Temporal can't take the request now", "world", "promote", "equities", first.strategy_id)
    said = types(
        5,
        "the submission is recorded as ",
        "submit",
        str(ROOT / "examples" / "first_strategy.py"),
        "-w",
        "equities",
    )
    assert "submit again" in said
    machine.start_temporal()
    with machine.client() as client:
        ended = wait_for(lambda: client.apply_status("equities", "run-0", 5).outcome, "end of run-0")
        assert ended == "rolled_back"
        assert client.promotions("equities") == []
