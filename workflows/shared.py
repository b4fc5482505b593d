"""What every workflow uses: task queues, limits of activities, search attributes, and text for the Temporal UI."""

from datetime import timedelta
from typing import Any

from temporalio.common import RetryPolicy, SearchAttributeKey, WorkflowIDConflictPolicy

WORKFLOWS, WORLD, ORDERS = "qmtl-workflows", "qmtl-world", "qmtl-orders"

SEARCH_WORLD = SearchAttributeKey.for_keyword("QmtlWorld")
SEARCH_STRATEGY = SearchAttributeKey.for_keyword("QmtlStrategy")
SEARCH_STAGE = SearchAttributeKey.for_keyword("QmtlStage")
SEARCH_RUN = SearchAttributeKey.for_keyword("QmtlRunId")
SEARCH_DOMAIN = SearchAttributeKey.for_keyword("QmtlDomain")
SEARCH_ATTRIBUTES = (SEARCH_WORLD, SEARCH_STRATEGY, SEARCH_STAGE, SEARCH_RUN, SEARCH_DOMAIN)

# A task in the hands of a worker that was killed waits that long (10 s unless set).
TASK_TIMEOUT = timedelta(seconds=3)
_RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(seconds=5))
# A short store call, in the acknowledged path. (Any: the keywords of execute_local_activity.)
STORE: dict[str, Any] = {"start_to_close_timeout": timedelta(seconds=30), "retry_policy": _RETRY}
# A call that reads data or asks another workflow. Its worker heartbeats for it (temporal.plugin).
SLOW: dict[str, Any] = {
    "start_to_close_timeout": timedelta(minutes=5),
    "heartbeat_timeout": timedelta(seconds=3),
    "retry_policy": _RETRY,
    "task_queue": WORLD,
}
# A change of the fence. Scheduled, not local: between two of them lies something durable, so that a lost task never does a step again that others have built on.
FENCE: dict[str, Any] = {
    "start_to_close_timeout": timedelta(seconds=5),
    "retry_policy": _RETRY,
    "task_queue": ORDERS,
}
# A wait on the store, as long as its command says. Its worker heartbeats for it.
WAIT: dict[str, Any] = {
    "start_to_close_timeout": timedelta(days=2),
    "heartbeat_timeout": timedelta(seconds=3),
    "retry_policy": _RETRY,
    "task_queue": ORDERS,
}


def apply_id(world_id: str) -> str:
    """One at a time in a world."""
    return f"apply:{world_id}"


def evaluation_options(world_id: str) -> dict[str, Any]:
    """How the judgment of a world is started: one at a time. (Any: the keywords of start_workflow.)"""
    return {
        "id": f"evaluation:{world_id}",
        "task_queue": WORKFLOWS,
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        "task_timeout": TASK_TIMEOUT,
        "static_summary": f"judging world {world_id}",
    }


def table(header: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    """A Markdown table. Cells lose what would break it."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def figures(
    metrics: dict[str, float | None],
    names: tuple[str, ...] = ("sharpe", "max_drawdown", "trades", "sample_days", "total_return"),
) -> str:
    """The main metrics in one line."""
    known = [(name, metrics[name]) for name in names if name in metrics]
    return ", ".join(
        f"{name} {'missing' if value is None else format(value, '.4g')}" for name, value in known
    )
