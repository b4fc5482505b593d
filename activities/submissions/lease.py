"""The compute lease: an activity that a runner outside of Temporal holds.

The Gateway heartbeats and completes it for the runner.
"""

from temporalio import activity

from activities.messages.submission import RunCommand
from qmtl_sdk.contracts.submission import EvidenceRef


@activity.defn
def compute_lease(command: RunCommand) -> EvidenceRef:
    """Leave the activity open. Its completion carries the evidence that the runner uploaded."""
    activity.raise_complete_async()
