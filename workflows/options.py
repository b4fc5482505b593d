"""How workflows and activities run: task queues, limits, retries, and the start options of each workflow.

Whoever starts a workflow takes its options from here, and its id from workflows.ids.
"""

from datetime import timedelta
from typing import Any

from temporalio.common import RetryPolicy, WorkflowIDConflictPolicy

from workflows.ids import (
    apply_id,
    evaluation_id,
    promotion_id,
    rebalance_schedule_id,
    rebalancing_id,
    renewal_id,
    submission_id,
    upkeep_id,
)
from workflows.markdown import one_line
from workflows.search_attributes import SEARCH_RUN, SEARCH_STRATEGY, SEARCH_WORLD, attributes

# Keyword arguments of a call to Temporal. (Any: they have a type each, and differ from call to call.)
Options = dict[str, Any]

# Workflows, and their local activities.
WORKFLOW_QUEUE = "qmtl-workflows"
# Compute leases, measuring, evaluation requests, upkeep.
WORLD_QUEUE = "qmtl-world"
# The steps of an apply. A queue of its own, so that nothing slow delays a freeze.
ORDER_QUEUE = "qmtl-orders"

# A workflow task that a killed worker held is handed out again after this long (Temporal's default is 10 s).
TASK_TIMEOUT = timedelta(seconds=3)

# An activity whose worker heartbeats for it is handed out again this long after the last heartbeat.
_HEARTBEAT_TIMEOUT = timedelta(seconds=3)

# A lease ends at the latest after this long, however often its runner heartbeats.
_LEASE_LIMIT = timedelta(days=7)

# Retry from 100 ms up to every 5 s, without an end: the store and other services come back.
_RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(seconds=5))

# A short call of the store, on the path of an acknowledgement: a local activity. Between its first attempts
# the worker waits within the workflow task. Where it would wait for longer than a second, it ends the task,
# of which it takes few at a time (temporal.worker).
STORE: Options = {
    "start_to_close_timeout": timedelta(seconds=30),
    "retry_policy": _RETRY,
    "local_retry_threshold": timedelta(seconds=1),
}

# A call that reads data or sends a message to another workflow. The worker heartbeats for it
# (temporal.plugin).
SLOW: Options = {
    "start_to_close_timeout": timedelta(minutes=5),
    "heartbeat_timeout": _HEARTBEAT_TIMEOUT,
    "retry_policy": _RETRY,
    "task_queue": WORLD_QUEUE,
}

# Work of a schedule: archiving a queue or rows of one kind, or proposing shares. It is given up after ten
# attempts, half a minute where each fails at once, so that what fails for its own reason keeps nothing else
# back; the next run of the schedule tries again.
FEW_TRIES: Options = {
    **SLOW,
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(milliseconds=100),
        maximum_interval=timedelta(seconds=5),
        maximum_attempts=10,
    ),
}

# A change of the fence. A regular activity, not a local one: its result is in the history before the next
# step begins, so a lost workflow task never repeats a step that later steps build on.
FENCE: Options = {
    "start_to_close_timeout": timedelta(seconds=5),
    "retry_policy": _RETRY,
    "task_queue": ORDER_QUEUE,
}

# A wait on the store; its command carries the limit. The worker heartbeats for it.
WAIT: Options = {
    "start_to_close_timeout": timedelta(days=2),
    "heartbeat_timeout": _HEARTBEAT_TIMEOUT,
    "retry_policy": _RETRY,
    "task_queue": ORDER_QUEUE,
}

# What all workflows are started with.
_START: Options = {"task_queue": WORKFLOW_QUEUE, "task_timeout": TASK_TIMEOUT}


def lease_options(activity_id: str, heartbeat_timeout_s: float, runner: str) -> Options:
    """Build the options of a compute lease: an activity that its runner heartbeats, never retried."""
    return {
        "activity_id": activity_id,
        "task_queue": WORLD_QUEUE,
        "start_to_close_timeout": _LEASE_LIMIT,
        "heartbeat_timeout": timedelta(seconds=heartbeat_timeout_s),
        "retry_policy": RetryPolicy(maximum_attempts=1),
        "summary": one_line(f"compute lease of {runner}"),
    }


def submission_options(world_id: str, strategy_id: str, label: str, shadow: bool) -> Options:
    """Build the start options of a submission; one that runs is used. `label` names the strategy."""
    return {
        **_START,
        "id": submission_id(world_id, strategy_id, shadow),
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        "search_attributes": attributes({SEARCH_WORLD: world_id, SEARCH_STRATEGY: strategy_id}),
        "static_summary": one_line(
            f"submit {label} to world {world_id}{' as shadow' if shadow else ''};"
            f" its decision: `qmtl world explain {world_id} {label}`"
        ),
    }


def evaluation_options(world_id: str) -> Options:
    """Build the start options of a world's evaluation; one that runs is used."""
    return {
        **_START,
        "id": evaluation_id(world_id),
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        "static_summary": one_line(
            f"judge world {world_id} by its policy; the decision: `qmtl world show {world_id}`"
        ),
    }


def promotion_options(world_id: str, strategy_id: str, label: str, to: str) -> Options:
    """Build the start options of a promotion. Temporal refuses it if one of the strategy runs."""
    return {
        **_START,
        "id": promotion_id(world_id, strategy_id),
        "id_conflict_policy": WorkflowIDConflictPolicy.FAIL,
        "search_attributes": attributes({SEARCH_WORLD: world_id, SEARCH_STRATEGY: strategy_id}),
        "static_summary": one_line(
            f"promote {label} of world {world_id} to {to};"
            f" what it waits for: `qmtl world promotions {world_id}`"
        ),
    }


def apply_options(world_id: str, run_id: str, title: str, approvals: int) -> Options:
    """Build the options that an apply is started with, by a client or as a child workflow.

    The summary holds the plan's title, and the command to approve it if it needs approvals. Refused by
    Temporal if another apply of this world runs.
    """
    verb = "approve" if approvals else "applies"
    needs = "waits for approval" if approvals else "needs no approval"
    return {
        **_START,
        "id": apply_id(world_id),
        "search_attributes": attributes({SEARCH_WORLD: world_id, SEARCH_RUN: run_id}),
        "static_summary": one_line(f"{title}; {needs}: `qmtl world {verb} {world_id} {run_id}`"),
    }


def rebalancing_options(run_id: str, title: str, approvals: int) -> Options:
    """Build the start options of a rebalancing. One that runs is used."""
    needs = f"waits for approval: `qmtl world rebalance-approve {run_id}`"
    runs = f"needs no approval: `qmtl world rebalance-status {run_id}`"
    return {
        **_START,
        "id": rebalancing_id(run_id),
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        "search_attributes": attributes({SEARCH_RUN: run_id}),
        "static_summary": one_line(f"{title}; {needs if approvals else runs}"),
    }


def proposal_options(store_id: str, name: str) -> Options:
    """Build the options of the runs that a schedule of rebalancings starts."""
    return {
        **_START,
        "id": rebalance_schedule_id(store_id, name),
        "static_summary": one_line(
            f"propose shares by the schedule {name}; all: `qmtl world rebalance-schedule list`"
        ),
    }


def upkeep_options(store_id: str) -> Options:
    """Build the options of the runs that a store's upkeep schedule starts."""
    return {
        **_START,
        "id": upkeep_id(store_id),
        "static_summary": "archive and drop what is older than the queues' retention",
    }


def renewal_options(store_id: str) -> Options:
    """Build the options of the runs that a store's renewal schedule starts."""
    return {
        **_START,
        "id": renewal_id(store_id),
        "static_summary": "renew the decisions that will soon be stale",
    }
