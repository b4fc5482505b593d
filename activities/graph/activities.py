"""Thin: a contract in, the graph store called, a contract out."""

from temporalio import activity

from activities.commands import DiffCommand
from activities.events.store import CommitLogStore
from activities.graph.store import DiffResult, GraphStore


class GraphActivities:
    def __init__(self, graph: GraphStore, log: CommitLogStore) -> None:
        self._graph, self._log = graph, log

    @activity.defn(no_thread_cancel_exception=True)
    def diff(self, command: DiffCommand) -> DiffResult:
        submit = self._log.body(command.log_key)
        return self._graph.diff(
            command.run_id, command.world_id, command.execution_domain, submit.meta.name, submit.dag
        )
