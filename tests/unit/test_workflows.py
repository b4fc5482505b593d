"""Parts of workflows that need no server."""

from typing import Any

import pytest

from activities.messages.apply import ApplyInput
from qmtl_sdk.contracts.plans import Unfreeze
from temporal.plugin import WORKFLOWS
from workflows.apply import ApplyWorkflow
from workflows.ids import lease_id, split_lease_id, submission_request_id, submission_run_of
from workflows.markdown import one_line
from workflows.options import apply_options


class ThawStep(Unfreeze.__base__):  # type: ignore[name-defined,misc]  # the base of every contract
    """A step that no workflow knows."""

    kind: str = "unfreeze"
    ack_timeout_s: float = 1.0


@pytest.mark.parametrize("step", [ThawStep(), object(), None])
def test_an_unknown_step_of_an_apply_raises(step: Any) -> None:
    workflow = ApplyWorkflow(ApplyInput(store_id="s", world_id="w", run_id="r"))
    with pytest.raises(AssertionError):
        workflow._perform(step).send(None)


def test_ids_are_taken_apart_as_they_were_built() -> None:
    assert split_lease_id(lease_id("run", "lease-1")) == ("run", "lease-1")
    assert split_lease_id("nonsense") == ("nonsense", "")
    assert submission_run_of(submission_request_id("run")) == "run"


def test_a_summary_is_one_line_of_at_most_200_bytes() -> None:
    assert one_line("two\n  lines") == "two lines"
    assert one_line("ü" * 200) == "ü" * 98 + "…"
    assert len(one_line("→" * 200).encode()) <= 200


def test_the_summary_of_an_apply_says_what_it_does_and_how_to_approve_it() -> None:
    title = "bring 2 strategies of fx to dryrun"
    asked = apply_options("fx", "run-1", title, 1)["static_summary"]
    assert asked == f"{title}; waits for approval: `qmtl world approve fx run-1`"
    free = apply_options("fx", "run-1", title, 0)["static_summary"]
    assert free == f"{title}; needs no approval: `qmtl world applies fx run-1`"


def test_every_workflow_says_what_it_does() -> None:
    assert all(item.__doc__ and item.run.__doc__ for item in WORKFLOWS)
