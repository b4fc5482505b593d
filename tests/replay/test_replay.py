"""Recorded histories replay: a change that would break a running workflow fails here."""

import asyncio
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from temporal.plugin import WORKFLOWS, QmtlPlugin
from tests.replay.changed import Changed
from tests.replay.record import HISTORIES

FILES = sorted(HISTORIES.glob("*.json"))


def replay(path: Path, replayer: Replayer) -> None:
    asyncio.run(replayer.replay_workflow(WorkflowHistory.from_json(path.stem, path.read_text())))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_history_replays(path: Path) -> None:
    replay(path, Replayer(workflows=[], plugins=[QmtlPlugin()]))


def test_every_workflow_has_histories() -> None:
    submissions = {"submission_decided", "submission_rejected", "submission_lease_lost"}
    applies = {"apply_completed", "apply_rejected", "apply_aborted", "apply_frozen"}
    promotions = {"promotion_completed", "promotion_ended"}
    assert {path.stem for path in FILES} == submissions | applies | promotions | {
        "evaluation",
        "renewal",
        "upkeep",
    }
    assert {Path(path.stem).name.split("_")[0] for path in FILES} == {
        name.removesuffix("Workflow").lower() for name in (item.__name__ for item in WORKFLOWS)
    }


def test_a_change_that_breaks_a_workflow_is_found() -> None:
    with pytest.raises(workflow.NondeterminismError):
        replay(
            HISTORIES / "evaluation.json",
            Replayer(workflows=[Changed], data_converter=pydantic_data_converter),
        )
