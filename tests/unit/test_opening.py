"""The status of a closed world names one command that lets orders pass again."""

from datetime import UTC, datetime

import pytest

from api.cli.text.status import opening_text, session_text
from qmtl_sdk.contracts.applies import ApplyStatus, FenceStatus, StepRecord, StrategyHalt
from qmtl_sdk.contracts.plans import ApplyPlan
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionInfo

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def fence(state: str, halted: str = "") -> FenceStatus:
    return FenceStatus.model_validate(
        {
            "world_id": "w",
            "epoch": 2,
            "state": state,
            "held_by": "" if state == "open" else "run-1",
            "halted": halted,
            "allow_live": False,
            "live_edge": False,
        }
    )


def apply(*steps: str, outcome: str | None = None) -> ApplyStatus:
    return ApplyStatus.model_construct(
        world_id="w",
        run_id="run-1",
        outcome=outcome,
        steps=tuple(StepRecord.model_validate({"name": step, "started": NOW}) for step in steps),
        plan=ApplyPlan.model_construct(),
    )


@pytest.mark.parametrize(
    ("found", "newest", "command"),
    [
        (fence("frozen"), apply("freeze"), "qmtl world abort w run-1"),
        (fence("draining"), apply("freeze", "drain"), "qmtl world abort w run-1"),
        (fence("draining"), apply("freeze", "drain", "switch"), "qmtl up"),
        (fence("draining"), apply("freeze", "drain", "restore", outcome="frozen"), "qmtl world resume w"),
        (fence("open", "by an operator"), None, "qmtl world resume w"),
    ],
)
def test_a_closed_world_names_the_command_that_opens_it(
    found: FenceStatus, newest: ApplyStatus | None, command: str
) -> None:
    (line,) = opening_text(found, newest)
    assert f"`{command}`" in line


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (fence("open"), "gate open"),
        (fence("open", "by an operator"), "gate open, but orders are refused: the world is halted"),
        (fence("frozen"), "gate open, but orders are refused: the world is frozen"),
        (
            fence("open").model_copy(
                update={"strategy_halts": (StrategyHalt.model_construct(strategy_id="strategy:s"),)}
            ),
            "gate open, but orders are refused: the strategy is halted",
        ),
    ],
)
def test_a_session_whose_gate_is_open_is_shown_with_what_refuses_its_orders(
    found: FenceStatus, said: str
) -> None:
    session = SessionInfo.model_construct(
        strategy_id="strategy:s", ended_at=None, report=SessionHeartbeat(gate="open")
    )
    assert session_text(session, found) == said


def test_a_session_is_shown_with_the_targets_that_are_refused() -> None:
    report = SessionHeartbeat(gate="open", refused_targets=2, target_refusal="AAPL, KO: it has no price")
    session = SessionInfo.model_construct(strategy_id="strategy:s", ended_at=None, report=report)
    assert session_text(session, fence("open")) == "gate open; 2 targets refused (AAPL, KO: it has no price)"


def test_an_open_world_names_none() -> None:
    assert opening_text(fence("open"), apply(outcome="completed")) == []
