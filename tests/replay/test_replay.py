"""Recorded histories replay: a change that would break a running workflow fails here."""

import asyncio
import inspect
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from activities.messages import evaluation, promotion
from qmtl_sdk.contracts.model import Model
from temporal.plugin import WORKFLOWS, QmtlPlugin
from tests.replay.changed import Changed
from tests.replay.record import EARLIER, FOLLOWING, HISTORIES, retain

FILES = sorted(HISTORIES.glob("*.json"))
RETAINED = sorted(EARLIER.glob("*.json"))


def replay(path: Path, replayer: Replayer) -> None:
    asyncio.run(replayer.replay_workflow(WorkflowHistory.from_json(path.stem, path.read_text())))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_history_replays(path: Path) -> None:
    replay(path, Replayer(workflows=[], plugins=[QmtlPlugin()]))


@pytest.mark.parametrize("path", RETAINED, ids=lambda path: path.name)
def test_a_history_that_earlier_code_recorded_replays(path: Path) -> None:
    """Histories that are recorded anew with each change can't show that it breaks what runs."""
    replay(path, Replayer(workflows=[], plugins=[QmtlPlugin()]))


@pytest.mark.parametrize("module", [evaluation, promotion], ids=lambda module: module.__name__)
def test_messages_of_what_outlives_releases_ignore_keys_of_other_code(
    module: ModuleType,
) -> None:
    """A field that was removed from a signal left evaluations standing that earlier code had begun."""
    messages = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, Model) and item.__module__ == module.__name__
    ]
    assert messages
    for message in messages:
        with pytest.raises(ValidationError) as caught:
            message.model_validate({"of_other_code": 1, **dict.fromkeys(message.model_fields, object())})
        assert "extra_forbidden" not in {item["type"] for item in caught.value.errors()}, message


def test_what_follows_the_current_version_has_earlier_histories() -> None:
    following = {
        name.removesuffix("Workflow").lower()
        for item in WORKFLOWS
        for name in [item.__name__]
        if "AUTO_UPGRADE" in inspect.getsource(inspect.getmodule(item) or item)
    }
    assert following == set(FOLLOWING)
    assert {path.name.split("_")[0].split(".")[0] for path in RETAINED} == following


def test_recording_anew_retains_what_was_recorded(tmp_path: Path) -> None:
    histories, earlier = tmp_path / "histories", tmp_path / "earlier"
    histories.mkdir()
    for text in ("first", "second", "second"):
        for name in ("evaluation", "promotion_ended", "apply_completed"):
            (histories / f"{name}.json").write_text(f"{name} {text}")
        retain(histories, earlier)
    assert sorted(path.read_text() for path in earlier.iterdir()) == [
        "evaluation first",
        "evaluation second",
        "promotion_ended first",
        "promotion_ended second",
    ]


def test_every_workflow_has_histories() -> None:
    submissions = {"submission_decided", "submission_rejected", "submission_lease_lost"}
    applies = {"apply_completed", "apply_rejected", "apply_aborted", "apply_frozen"}
    promotions = {"promotion_completed", "promotion_ended"}
    rebalancings = {"rebalancing_completed", "rebalancing_rejected", "rebalancing_aborted"}
    proposals = {"proposal_requested", "proposal_failed"}
    assert {path.stem for path in FILES} == submissions | applies | promotions | rebalancings | proposals | {
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
