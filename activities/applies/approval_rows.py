"""The row of what an authenticated person says about a run: an apply, or a rebalancing."""

import uuid
from typing import NamedTuple

from activities.messages.apply import STORED_APPROVAL, ApprovalVerdict
from activities.storage.tables import ApprovalRow
from activities.storage.transactions import utc_now


class ApprovalSubject(NamedTuple):
    """What is approved: the kind of run, its world and id, and the hash of its plan."""

    about: str
    world_id: str
    run_id: str
    plan_hash: str


def approval_row(subject: ApprovalSubject, actor: str, verdict: ApprovalVerdict, reason: str) -> ApprovalRow:
    """Build the row of an approval or rejection that came through a Gateway."""
    return ApprovalRow(
        approval_id=f"{STORED_APPROVAL}{uuid.uuid4().hex}",
        world_id=subject.world_id,
        about=subject.about,
        subject=subject.run_id,
        actor=actor,
        verdict=verdict,
        reason=reason,
        via="gateway",
        counts=True,
        plan_hash=subject.plan_hash,
        at=utc_now(),
    )
