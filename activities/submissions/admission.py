"""The admission of a submission in one transaction: its run, its diff, and the answer in the commit log."""

from activities.graph.store import GraphStore
from activities.messages.submission import AdmitRun, DiffResult, RunContextBody
from activities.storage.database import Database
from activities.submissions.store import CommitLogStore, RunStore
from qmtl_sdk.contracts.identity import compute_key, node_ids_crc32
from qmtl_sdk.contracts.submission import Lease, QueueTarget, StrategySubmit, SubmissionAck


class SqlAdmissions:
    """Admits submissions. Each part is done once for a run; a repetition returns what is stored."""

    def __init__(self, database: Database, log: CommitLogStore, runs: RunStore, graph: GraphStore) -> None:
        self._database = database
        self._log = log
        self._runs = runs
        self._graph = graph

    def admit(self, command: AdmitRun, run: RunContextBody, submit: StrategySubmit) -> SubmissionAck:
        """Store a run's context and diff, and record the answer. Returns the answer."""
        with self._database.write("submission") as tx:
            tx.lock("graph")  # of two attempts at once, the second finds what the first has stored
            run = self._runs.begin_run(tx, run)
            diff = self._graph.diff(tx, run, submit.dag)
            ack = acknowledgement(run, diff, command.workflow_id, command.lease)
            self._log.record_admission(tx, command.idempotency_key, run.run_id, ack)
        return ack


def acknowledgement(
    run: RunContextBody, diff: DiffResult, workflow_id: str, lease: Lease | None
) -> SubmissionAck:
    """Build the answer to a submission: queue map, context, and the lease if the runner holds it."""
    context = run.context
    scope = (context.world_id, context.execution_domain.value, context.as_of or "", context.partition)
    reused = set(diff.reused)
    return SubmissionAck(
        world_id=run.world_id,
        strategy_id=run.strategy_id,
        workflow_id=workflow_id,
        run_id=run.run_id,
        queue_map={
            node_id: QueueTarget(
                topic=topic, compute_key=compute_key(node_id, *scope), reused=node_id in reused
            )
            for node_id, topic in diff.topics.items()
        },
        nodes_new=len(diff.new),
        nodes_reused=len(diff.reused),
        sentinel_id=diff.sentinel_id,
        node_ids_crc32=node_ids_crc32(diff.topics),
        context=context,
        bindings=run.bindings,
        execution=run.execution,
        lease=lease,
    )
