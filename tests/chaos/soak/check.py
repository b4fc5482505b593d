"""What must hold when a year is over: nothing lost, nothing doubled, nothing waiting, every chain whole."""

from collections import Counter

from activities.artifacts.folder import FolderArtifacts
from activities.events.dead_letters import SqlDeadLetters
from activities.events.outbox import SqlOutbox
from activities.fence.segments import LOG, rows_after
from activities.retention.archives import RETENTION, Archives, archived_until, archives_of
from activities.retention.audit import SqlAudit
from activities.storage.database import Database
from qmtl_sdk import QmtlError
from tests.chaos.soak.load import WORLD
from tests.support.machine import Machine, wait_for

_ENDS = ("filled", "cancelled", "rejected", "expired")

_REST_S = 120.0


def violations(machine: Machine, accepted: set[str]) -> list[str]:
    """`accepted`: the ids of the orders that traders were told are accepted."""
    database = machine.database()
    try:
        archives = Archives(FolderArtifacts(machine.config.artifact_dir))
        return [
            *_at_rest(machine, database),
            *_chains(SqlAudit(database, archives)),
            *_orders(database, archives, accepted),
        ]
    finally:
        database.close()


def _at_rest(machine: Machine, database: Database) -> list[str]:
    broken = []
    with machine.client() as client:
        rests = {
            "end of all orders": lambda: client.fence(WORLD).open_orders == 0,
            "published outbox": lambda: not SqlOutbox(database).waiting(1),
            "empty commit log": lambda: client.gateway_status().get("log_waiting") == 0,
            "health": lambda: client.health()["status"] == "ok",
        }
        for what, condition in rests.items():
            try:
                wait_for(condition, what, _REST_S)
            except AssertionError as error:
                broken.append(f"it did not come to rest: {error}")
    letters = SqlDeadLetters(database).count(1000)
    return [*broken, *([f"{letters} dead letters"] if letters else [])]


def _chains(audit: SqlAudit) -> list[str]:
    broken = []
    for chain in (WORLD, RETENTION):
        try:
            audit.verify(chain)
        except QmtlError as error:
            broken.append(str(error))
    return broken


def _orders(database: Database, archives: Archives, accepted: set[str]) -> list[str]:
    """Read the order log from its archives and its table. Each accepted order has ended once."""
    logged: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    with database.read() as session:
        parts = [archives.read(found, "world_id") for found in archives_of(session, LOG.name, WORLD)]
        after = archived_until(session, LOG.name, WORLD)
        for rows in (*parts, rows_after(session.connection(), WORLD, after)):
            logged.update(row["ref"] for row in rows if row["kind"] == "accepted")
            ended.update(row["ref"] for row in rows if row["kind"] in _ENDS)
    lost = accepted ^ logged.keys()
    broken = [f"{len(lost)} orders are in one of answers and log only"] if lost else []
    wrong = [name for name in logged if (logged[name], ended[name]) != (1, 1)]
    return [*broken, *([f"{len(wrong)} accepted orders have not ended once"] if wrong else [])]
