"""Every id that a workflow has or makes. Whoever starts, signals or lists workflows builds the id here.

A workflow id says what runs only once at a time: one submission of a strategy, one judgment or apply of a
world.
"""

from activities.messages.submission import RunContextBody
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.model import Model

# Characters of a store's id in the ids of its schedules: enough to keep the stacks on one Temporal server
# apart.
_STORE_ID_LENGTH = 12

# Prefix of the evaluation requests that submissions make.
_SUBMISSION_REQUEST = "submission:"


def submission_id(world_id: str, strategy_id: str, shadow: bool = False) -> str:
    """Build the id of a strategy's submission to a world. A shadow run has an id of its own."""
    return f"submission:{world_id}:{strategy_id}{':shadow' if shadow else ''}"


def submission_id_of(run: RunContextBody) -> str:
    """Build the id of the workflow that a run belongs to."""
    return submission_id(run.world_id, run.strategy_id, run.context.execution_domain is Domain.SHADOW)


def evaluation_id(world_id: str) -> str:
    """Build the id of a world's evaluation."""
    return f"evaluation:{world_id}"


def promotion_id(world_id: str, strategy_id: str) -> str:
    """Build the id of a strategy's promotion in a world."""
    return f"promotion:{world_id}:{strategy_id}"


def promoted_strategy(workflow_id: str, world_id: str) -> str:
    """Return the strategy_id in the id of a promotion in this world."""
    return workflow_id.removeprefix(promotion_id(world_id, ""))


def apply_id(world_id: str) -> str:
    """Build the id of a world's apply."""
    return f"apply:{world_id}"


def rebalancing_id(run_id: str) -> str:
    """Build the id of a rebalancing."""
    return f"rebalancing:{run_id}"


def rebalance_schedule_id(store_id: str, name: str) -> str:
    """Build the id of a schedule of rebalancings, and the beginning of those of its firings."""
    return f"rebalance-schedule:{store_id[:_STORE_ID_LENGTH]}:{name}"


def upkeep_id(store_id: str) -> str:
    """Build the id of a store's upkeep, and of its schedule."""
    return f"upkeep:{store_id[:_STORE_ID_LENGTH]}"


def renewal_id(store_id: str) -> str:
    """Build the id of a store's renewal, and of its schedule."""
    return f"renewal:{store_id[:_STORE_ID_LENGTH]}"


def update_id(request: Model) -> str:
    """Build the id of an update: the hash of its content.

    Of two updates with one id that differ, the history would hold the content of one and the steps of the
    other. It would not replay, and its workflow could never go on.
    """
    return hash_of(request.json_dict())


def lease_activity_id(run_id: str, number: int) -> str:
    """Build the activity id of a run's lease: `number` counts its leases from 1.

    A runner reaches the activity by the id of the workflow, which later runs share, so it names its run.
    """
    return f"lease-{number}-{run_id[-12:]}"


def lease_id(run_id: str, activity_id: str) -> str:
    """Build the id under which a runner holds a compute lease."""
    return f"{run_id}.{activity_id}"


def split_lease_id(lease: str) -> tuple[str, str]:
    """Return the run_id and the activity id of a lease. The activity id of a malformed lease id is empty."""
    run_id, _, activity_id = lease.partition(".")
    return run_id, activity_id


def submission_request_id(run_id: str) -> str:
    """Build the request_id of the evaluation that a submission's run requests."""
    return f"{_SUBMISSION_REQUEST}{run_id}"


def submission_run_of(request_id: str) -> str:
    """Return the run_id of the submission that requested an evaluation."""
    return request_id.removeprefix(_SUBMISSION_REQUEST)


def renewal_request_id(world_id: str, run_id: str) -> str:
    """Build the request_id of the evaluation by which a run of the renewal renews a world's decision."""
    return f"renew:{world_id}:{run_id}"


def promotion_apply_id(promotion_run_id: str, number: int) -> str:
    """Build the run_id of a promotion's apply: `number` counts its applies from 1.

    Takes the end of the promotion's run_id, because the beginning is a time and the end is random.
    """
    return f"promote-{promotion_run_id[-12:]}-{number}"


def direct_approval_id(run_id: str, history_length: int, position: int) -> str:
    """Build the id of an approval that was signalled straight to Temporal.

    Built from the signal's place in the workflow's history, so that a replay gives the same signal the same
    id.
    """
    return f"direct:{run_id}:{history_length}:{position}"
