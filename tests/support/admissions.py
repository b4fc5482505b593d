"""Parts of an admission, each in a transaction of its own."""

from activities.graph.sql import SqlGraphStore
from activities.messages.submission import DiffResult, RunContextBody
from activities.storage.database import Database
from activities.submissions.log import SqlCommitLog
from activities.submissions.runs import SqlRunStore
from qmtl_sdk.contracts.dag import Dag
from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.contracts.submission import SubmissionAck
from qmtl_sdk.contracts.worlds import Execution


def run_of(
    run_id: str, strategy_id: str, world: str = "w", name: str = "S", domain: Domain = Domain.BACKTEST
) -> RunContextBody:
    return RunContextBody(
        run_id=run_id,
        world_id=world,
        strategy_id=strategy_id,
        name=name,
        context=ComputeContext(world_id=world, execution_domain=domain),
        bindings=(),
        execution=Execution(),
    )


def begin_run(database: Database, run: RunContextBody) -> RunContextBody:
    with database.write("test") as tx:
        return SqlRunStore(database).begin_run(tx, run)


def diff(
    database: Database, run_id: str, world: str, name: str, dag: Dag, domain: Domain = Domain.BACKTEST
) -> DiffResult:
    with database.write("test") as tx:
        run = run_of(run_id, dag.strategy_id, world, name, domain)
        return SqlGraphStore(database).diff(tx, run, dag)


def record_admission(database: Database, key: str, run_id: str, ack: SubmissionAck) -> None:
    with database.write("test") as tx:
        SqlCommitLog(database).record_admission(tx, key, run_id, ack)
