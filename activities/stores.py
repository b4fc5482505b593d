"""Every store of an installation, opened together: what a worker and a Gateway work with."""

from dataclasses import dataclass

from activities.access.principals import SqlPrincipalStore
from activities.access.sql import SqlTokenStore
from activities.allocation.equity_report import SqlEquityReport
from activities.allocation.store import SqlAllocations
from activities.applies.acknowledgements import SqlApplyAcks
from activities.applies.activities import ApplyStores
from activities.applies.approvals import SqlApprovals
from activities.applies.requests import SqlApplyRequests
from activities.applies.rule_changes import SqlRuleChanges
from activities.applies.steps import SqlApplySteps
from activities.artifacts.folder import FolderArtifacts
from activities.decisions.activities import DecisionStores
from activities.decisions.sql import SqlDecisionStore
from activities.events.dead_letters import SqlDeadLetters
from activities.events.outbox import SqlOutbox
from activities.fence.acceptance import OrderAcceptance
from activities.fence.acknowledgements import SqlGatewayLeases
from activities.fence.bookings import SqlBookings
from activities.fence.cache_hits import SqlCacheHits
from activities.fence.fills import SqlFills
from activities.fence.flattens import SqlFlattens
from activities.fence.order_log import SqlOrderLog
from activities.fence.reconciliations import SqlReconciliations
from activities.fence.store import SqlFenceStore
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.fence.withheld import SqlWithheldOrders
from activities.graph.sql import SqlGraphStore
from activities.ledger.sql import SqlLedger
from activities.ledger.summary import SqlPositionSummary
from activities.queues.catalogue import SqlQueueCatalogue
from activities.queues.store import SqliteQueues
from activities.rebalancing.activities import RebalancingStores
from activities.rebalancing.approvals import SqlRebalanceApprovals
from activities.rebalancing.beginning import SqlRebalanceBeginnings
from activities.rebalancing.ending import SqlRebalanceEnds
from activities.rebalancing.firings import SqlFirings
from activities.rebalancing.ordering import SqlRebalanceOrders
from activities.rebalancing.requests import SqlRebalancings
from activities.rebalancing.schedules import SqlRebalanceSchedules
from activities.retention.archives import Archives
from activities.retention.audit import SqlAudit
from activities.retention.ledger import LedgerProjection
from activities.retention.upkeep import RowRetention
from activities.sessions.sql import SqlSessionStore
from activities.settings import Settings
from activities.storage.database import Database
from activities.storage.opening import open_database
from activities.submissions.activities import SubmissionStores
from activities.submissions.admission import SqlAdmissions
from activities.submissions.context import ContextSources
from activities.submissions.log import SqlCommitLog
from activities.submissions.runs import SqlRunStore
from activities.worlds.edges import SqlEdgeStore
from activities.worlds.policies import SqlPolicyStore
from activities.worlds.specs import SqlWorldStore


@dataclass(frozen=True)
class Stores:
    """One database, a folder of artifacts and the log of node queues, with every store over them."""

    database: Database
    artifacts: FolderArtifacts
    queues: SqliteQueues
    log: SqlCommitLog
    runs: SqlRunStore
    graph: SqlGraphStore
    worlds: SqlWorldStore
    policies: SqlPolicyStore
    edges: SqlEdgeStore
    decisions: SqlDecisionStore
    fence: SqlFenceStore
    strategy_halts: SqlStrategyHalts
    flattens: SqlFlattens
    gateway_leases: SqlGatewayLeases
    orders: OrderAcceptance
    fills: SqlFills
    bookings: SqlBookings
    ledger: SqlLedger
    position_summary: SqlPositionSummary
    ledger_projection: LedgerProjection
    reconciliations: SqlReconciliations
    allocations: SqlAllocations
    equity_report: SqlEquityReport
    rebalancings: RebalancingStores
    rebalance_schedules: SqlRebalanceSchedules
    firings: SqlFirings
    order_log: SqlOrderLog
    withheld: SqlWithheldOrders
    cache_hits: SqlCacheHits
    apply_requests: SqlApplyRequests
    rule_changes: SqlRuleChanges
    apply_steps: SqlApplySteps
    apply_acks: SqlApplyAcks
    approvals: SqlApprovals
    sessions: SqlSessionStore
    catalogue: SqlQueueCatalogue
    tokens: SqlTokenStore
    principals: SqlPrincipalStore
    outbox: SqlOutbox
    dead_letters: SqlDeadLetters
    audit: SqlAudit
    retention: RowRetention

    @classmethod
    def open(cls, config: Settings) -> "Stores":
        """Open every store. Raises QmtlError (E_UNAVAILABLE) where the database cannot be reached."""
        database = open_database(config.database_dsn)
        rebalancings = SqlRebalancings(database)
        schedules = SqlRebalanceSchedules(database, config.orders.accounts)
        artifacts = FolderArtifacts(config.artifact_dir)
        archives = Archives(artifacts)
        return cls(
            database=database,
            artifacts=artifacts,
            queues=SqliteQueues(config.queues_path),
            log=SqlCommitLog(database),
            runs=SqlRunStore(database),
            graph=SqlGraphStore(database),
            worlds=SqlWorldStore(database),
            policies=SqlPolicyStore(database),
            edges=SqlEdgeStore(database),
            decisions=SqlDecisionStore(database),
            fence=SqlFenceStore(database),
            strategy_halts=SqlStrategyHalts(database),
            flattens=SqlFlattens(database, config.orders.accounts, config.orders.no_router_after_s),
            gateway_leases=SqlGatewayLeases(database),
            orders=OrderAcceptance(database, config.orders),
            fills=SqlFills(database),
            bookings=SqlBookings(database),
            ledger=SqlLedger(database),
            position_summary=SqlPositionSummary(database),
            ledger_projection=LedgerProjection(database, archives),
            reconciliations=SqlReconciliations(database),
            allocations=SqlAllocations(database),
            equity_report=SqlEquityReport(database),
            rebalancings=RebalancingStores(
                rebalancings,
                SqlRebalanceApprovals(database),
                SqlRebalanceBeginnings(database, config.orders),
                SqlRebalanceOrders(database, config.orders),
                SqlRebalanceEnds(database),
            ),
            rebalance_schedules=schedules,
            firings=SqlFirings(database, schedules, rebalancings, config.orders.accounts),
            order_log=SqlOrderLog(database),
            withheld=SqlWithheldOrders(database),
            cache_hits=SqlCacheHits(database),
            apply_requests=SqlApplyRequests(database),
            rule_changes=SqlRuleChanges(database),
            apply_steps=SqlApplySteps(database, config.orders.accounts),
            apply_acks=SqlApplyAcks(database),
            approvals=SqlApprovals(database),
            sessions=SqlSessionStore(database, config.gateway.session_lease_s),
            catalogue=SqlQueueCatalogue(database),
            tokens=SqlTokenStore(database),
            principals=SqlPrincipalStore(database),
            outbox=SqlOutbox(database),
            dead_letters=SqlDeadLetters(database),
            audit=SqlAudit(database, archives),
            retention=RowRetention(database, archives, config.retention),
        )

    @property
    def context_sources(self) -> ContextSources:
        """What the context of a run is decided from."""
        return ContextSources(self.worlds, self.policies, self.decisions, self.fence)

    @property
    def for_submissions(self) -> SubmissionStores:
        """The stores that the activities of a submission use."""
        return SubmissionStores(
            self.log,
            self.runs,
            SqlAdmissions(self.database, self.log, self.runs, self.graph),
            self.artifacts,
            self.decisions,
            self.context_sources,
        )

    @property
    def for_decisions(self) -> DecisionStores:
        """The stores that a judgment uses."""
        return DecisionStores(self.worlds, self.policies, self.decisions, self.fence, self.artifacts)

    @property
    def for_applies(self) -> ApplyStores:
        """The stores that the activities of an apply use."""
        return ApplyStores(
            self.apply_requests, self.approvals, self.apply_steps, self.apply_acks, self.order_log
        )

    def close(self) -> None:
        """Close the database and the queues."""
        self.queues.close()
        self.database.close()
