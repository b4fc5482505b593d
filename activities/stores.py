"""Every store of an installation, opened together: what a worker and a Gateway work with."""

from dataclasses import dataclass

from activities.access.sql import SqlTokenStore
from activities.artifacts.folder import FolderArtifacts
from activities.events.outbox import SqlOutbox
from activities.events.sql import SqlCommitLog
from activities.graph.sql import SqlGraphStore
from activities.orders.sql import SqlOrderStore
from activities.queues.catalogue import SqlQueueCatalogue
from activities.queues.store import SqliteQueues
from activities.storage.audit import SqlAudit
from activities.storage.database import Database, open_database
from activities.worlds.applies import SqlApplyStore
from activities.worlds.sessions import SqlSessionStore
from activities.worlds.sql import SqlWorldStore
from qmtl_sdk.runtime.config import Settings


@dataclass(frozen=True)
class Stores:
    """Every store: over one database, a folder of artifacts and the log of node queues."""

    database: Database
    log: SqlCommitLog
    graph: SqlGraphStore
    worlds: SqlWorldStore
    artifacts: FolderArtifacts
    tokens: SqlTokenStore
    sessions: SqlSessionStore
    catalogue: SqlQueueCatalogue
    queues: SqliteQueues
    outbox: SqlOutbox
    orders: SqlOrderStore
    applies: SqlApplyStore
    audit: SqlAudit

    @classmethod
    def open(cls, config: Settings) -> "Stores":
        database = open_database(config.database_dsn)
        return cls(
            database,
            SqlCommitLog(database),
            SqlGraphStore(database),
            SqlWorldStore(database),
            FolderArtifacts(config.artifact_dir),
            SqlTokenStore(database),
            SqlSessionStore(database, config.gateway.session_lease_s),
            SqlQueueCatalogue(database),
            SqliteQueues(config.queues_path),
            SqlOutbox(database),
            SqlOrderStore(database),
            SqlApplyStore(database),
            SqlAudit(database),
        )

    def close(self) -> None:
        self.queues.close()
        self.database.close()
