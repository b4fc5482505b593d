"""The status of a closed world names one command that lets orders pass again."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from api.cli.names import StrategyNames
from api.cli.text.status import opening_text, runners_text, session_text
from qmtl_sdk.contracts.applies import ApplyStatus, FenceStatus, StepRecord, StrategyHalt
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.domains import Domain
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


def test_a_strategy_that_is_active_without_a_session_in_its_domain_is_named() -> None:
    """Nothing said that nobody ran it."""
    active = ActivationEnvelope.model_validate(
        {
            "world_id": "w",
            "strategy_id": "strategy:s",
            "side": "long",
            "active": True,
            "weight": 1.0,
            "effective_mode": "live",
            "etag": "e",
            "run_id": "r",
            "ts": NOW,
            "execution_domain": "live",
        }
    )
    bound = SimpleNamespace(strategy_id="strategy:s", name="Trend")
    client: Any = SimpleNamespace(decisions=lambda *_: [], bindings=lambda _: [bound])
    names = StrategyNames(client, "w")
    runs = [
        SessionInfo.model_construct(strategy_id="strategy:s", execution_domain=Domain(domain))
        for domain in ("dryrun", "live")
    ]
    missing = "no runner  Trend is active in live, and no session runs it"
    assert runners_text([active], [], names) == ["sessions   0 running", missing]
    assert runners_text([active], runs[:1], names) == ["sessions   1 running", missing]
    assert runners_text([active], runs, names) == ["sessions   2 running"]
    backtest = active.model_copy(update={"effective_mode": "validate", "execution_domain": Domain.BACKTEST})
    for item in (active.model_copy(update={"active": False}), backtest):
        assert runners_text([item], [], names) == ["sessions   0 running"]


def test_a_session_is_shown_with_the_targets_that_are_refused() -> None:
    report = SessionHeartbeat(gate="open", refused_targets=2, target_refusal="AAPL, KO: it has no price")
    session = SessionInfo.model_construct(strategy_id="strategy:s", ended_at=None, report=report)
    assert session_text(session, fence("open")) == "gate open; 2 targets refused (AAPL, KO: it has no price)"


def test_an_open_world_names_none() -> None:
    assert opening_text(fence("open"), apply(outcome="completed")) == []
