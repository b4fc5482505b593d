"""Every table, by owner. Bodies are canonical JSON text; times are UTC, ISO 8601 text, so that both databases order them alike."""

from sqlalchemy import BigInteger, Column, Index, Integer, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

_Seq = BigInteger().with_variant(Integer, "sqlite")


def _seq() -> "Column[int]":
    return Column(_Seq, primary_key=True, autoincrement=True)


def _text() -> "Column[str]":
    return Column(Text, nullable=False)


# storage


class StoreIdentityRow(SQLModel, table=True):
    """One row: the id that workflows carry, so that a worker of another store refuses their work."""

    __tablename__ = "store_identity"
    store_id: str = Field(primary_key=True)


class AuditRow(SQLModel, table=True):
    """Who did what. Rows are never changed: each holds the hash of itself and of the row before it in its chain (the world's, or the subject's)."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_chain", "chain", "number"),)
    seq: int | None = Field(default=None, sa_column=_seq())
    at: str
    actor: str
    action: str = Field(index=True)
    world_id: str = Field(index=True)
    subject: str
    correlation_id: str
    before: str = Field(sa_column=_text())
    after: str = Field(sa_column=_text())
    chain: str = Field(default="", sa_column_kwargs={"server_default": ""})
    number: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    hash: str = Field(default="", sa_column_kwargs={"server_default": ""})


class AuditHeadRow(SQLModel, table=True):
    """The end of a chain of audit rows, so that rows missing at the end are noticed."""

    __tablename__ = "audit_head"
    chain: str = Field(primary_key=True)
    number: int
    hash: str


class OutboxRow(SQLModel, table=True):
    """What others will be told, written with the change itself. `key` keeps order: the world's, or the subject's where there is no world."""

    __tablename__ = "outbox"
    __table_args__ = (
        Index(
            "outbox_waiting",
            "seq",
            sqlite_where=text("published_at IS NULL"),
            postgresql_where=text("published_at IS NULL"),
        ),
    )
    seq: int | None = Field(default=None, sa_column=_seq())
    event_id: str = Field(unique=True)
    type: str
    key: str
    world_id: str = Field(default="", sa_column_kwargs={"server_default": ""})
    subject: str = Field(default="", sa_column_kwargs={"server_default": ""})
    at: str
    data: str = Field(sa_column=_text())
    published_at: str | None = None


# access


class TokenRow(SQLModel, table=True):
    """A token that was given out; its secret part is nowhere."""

    __tablename__ = "token"
    token_id: str = Field(primary_key=True)
    subject: str
    grants: str = Field(sa_column=_text())
    created_by: str
    created_at: str
    expires_at: str
    revoked_at: str | None = Field(default=None, index=True)


# events


class CommitLogRow(SQLModel, table=True):
    """Submissions in the order in which they came, before anything is done with them. `ack` is what was answered."""

    __tablename__ = "commit_log"
    seq: int | None = Field(default=None, sa_column=_seq())
    idempotency_key: str = Field(unique=True)
    world_id: str
    strategy_id: str
    body_hash: str
    body: str = Field(sa_column=_text())
    received_at: str
    run_id: str | None = Field(default=None, index=True)
    ack: str | None = Field(default=None, sa_column=Column(Text))
    refused: str | None = Field(default=None, sa_column=Column(Text))


# graph


class GraphNodeRow(SQLModel, table=True):
    """A node of the global strategy graph. Append-only."""

    __tablename__ = "graph_node"
    node_id: str = Field(primary_key=True)
    node_type: str
    interval_s: int
    period: int
    schema_compat_id: str
    schema_hash: str
    code_hash: str
    body: str = Field(sa_column=_text())
    first_strategy: str
    created_at: str
    recompute_after: str | None = None


class GraphEdgeRow(SQLModel, table=True):
    __tablename__ = "graph_edge"
    parent: str = Field(primary_key=True)
    child: str = Field(primary_key=True, index=True)


class GraphStrategyRow(SQLModel, table=True):
    __tablename__ = "graph_strategy"
    strategy_id: str = Field(primary_key=True)
    name: str
    dag: str = Field(sa_column=_text())
    created_at: str


class SentinelRow(SQLModel, table=True):
    """The version boundary in front of a strategy in a world."""

    __tablename__ = "sentinel"
    __table_args__ = (UniqueConstraint("world_id", "strategy_id"),)
    sentinel_id: str = Field(primary_key=True)
    world_id: str
    strategy_id: str
    version: str
    traffic_weight: float
    created_at: str


class DiffRow(SQLModel, table=True):
    """The answer of a diff, by workflow run: asked again, it answers the same."""

    __tablename__ = "graph_diff"
    run_id: str = Field(primary_key=True)
    body: str = Field(sa_column=_text())


class QueueRow(SQLModel, table=True):
    """A node's topic in a world and domain."""

    __tablename__ = "queue"
    __table_args__ = (UniqueConstraint("node_id", "world_id", "execution_domain"),)
    topic: str = Field(primary_key=True)
    node_id: str = Field(index=True)
    world_id: str
    execution_domain: str
    kind: str
    partitions: int
    retention_days: int
    replication: int
    created_at: str
    archived_at: str | None = None
    archive: str | None = None
    dropped_at: str | None = None


class QueueTagRow(SQLModel, table=True):
    """The label tags of a queue's node, by which tag queries find it."""

    __tablename__ = "queue_tag"
    tag: str = Field(primary_key=True)
    topic: str = Field(primary_key=True)


class TagQueryRow(SQLModel, table=True):
    """A tag query of a strategy in a world and domain: it is told when what it finds changes."""

    __tablename__ = "tag_query"
    world_id: str = Field(primary_key=True)
    execution_domain: str = Field(primary_key=True)
    node_id: str = Field(primary_key=True)
    tags: str = Field(sa_column=_text())
    interval_s: int
    match_mode: str
    created_at: str


# worlds


class WorldRow(SQLModel, table=True):
    __tablename__ = "world"
    world_id: str = Field(primary_key=True)
    spec: str = Field(sa_column=_text())
    etag: str
    created_at: str
    policy_version: int | None = None
    activation_sequence: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    pinned_fingerprint: str = Field(default="", sa_column_kwargs={"server_default": ""})
    state: str = Field(default="active", sa_column_kwargs={"server_default": "active"})


class PolicyRow(SQLModel, table=True):
    __tablename__ = "policy"
    world_id: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    body: str = Field(sa_column=_text())
    created_at: str


class BindingRow(SQLModel, table=True):
    """A strategy in a world (WSB). `seq` is its age: ties in score go to the older."""

    __tablename__ = "binding"
    __table_args__ = (UniqueConstraint("world_id", "strategy_id"),)
    seq: int | None = Field(default=None, sa_column=_seq())
    world_id: str
    strategy_id: str
    name: str
    created_at: str


class RunContextRow(SQLModel, table=True):
    """What the services decided about one run: context, bindings, costs, the data's range."""

    __tablename__ = "run_context"
    run_id: str = Field(primary_key=True)
    world_id: str
    strategy_id: str
    body: str = Field(sa_column=_text())
    created_at: str


class EvidenceRow(SQLModel, table=True):
    """What a run came to: metrics, or why there are none. A shadow run's is no evidence for the world."""

    __tablename__ = "evidence"
    __table_args__ = (Index("evidence_of", "world_id", "strategy_id", "seq"),)
    seq: int | None = Field(default=None, sa_column=_seq())
    run_id: str = Field(unique=True)
    world_id: str
    strategy_id: str
    body: str = Field(sa_column=_text())
    shadow: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    created_at: str


class DecisionRow(SQLModel, table=True):
    __tablename__ = "decision"
    __table_args__ = (Index("decision_of", "world_id", "seq"),)
    seq: int | None = Field(default=None, sa_column=_seq())
    world_id: str
    policy_version: int
    etag: str
    body: str = Field(sa_column=_text())
    created_at: str


class EvaluationRequestRow(SQLModel, table=True):
    """Which decision answered which request: asked again, it answers the same."""

    __tablename__ = "evaluation_request"
    request_id: str = Field(primary_key=True)
    world_id: str
    decision_seq: int


class ActivationRow(SQLModel, table=True):
    __tablename__ = "activation"
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    etag: str
    active: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    mode: str = Field(default="", sa_column_kwargs={"server_default": ""})
    body: str = Field(sa_column=_text())


class HysteresisRow(SQLModel, table=True):
    """What hysteresis remembers of a strategy: how often in a row it passed or failed, and since when (world time) it is in or out."""

    __tablename__ = "standing"
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    body: str = Field(sa_column=_text())


class DecisionInputsRow(SQLModel, table=True):
    """What a decision was made from, so that another policy can be tried on it."""

    __tablename__ = "judged"
    decision_seq: int = Field(sa_column=Column(_Seq, primary_key=True, autoincrement=False))
    world_id: str = Field(index=True)
    body: str = Field(sa_column=_text())


class EdgeOverrideRow(SQLModel, table=True):
    """An edge of the world's view graph, between nodes or between domains (`domain:backtest`), that is closed or opened."""

    __tablename__ = "edge_override"
    world_id: str = Field(primary_key=True)
    src: str = Field(primary_key=True)
    dst: str = Field(primary_key=True)
    active: bool
    reason: str
    updated_at: str


class WorldNodeRow(SQLModel, table=True):
    """A node in a world and domain (WorldNodeRef), with its state and the key of its newest validation."""

    __tablename__ = "world_node"
    world_id: str = Field(primary_key=True)
    node_id: str = Field(primary_key=True)
    execution_domain: str = Field(primary_key=True)
    state: str
    eval_key: str
    updated_at: str


class ValidationRow(SQLModel, table=True):
    """The result of a validation, by EvalKey: another dataset, contract, domain or code is another validation."""

    __tablename__ = "validation"
    eval_key: str = Field(primary_key=True)
    world_id: str = Field(index=True)
    node_id: str
    execution_domain: str
    result: str
    body: str = Field(sa_column=_text())
    created_at: str


# promotion


class ApplyRow(SQLModel, table=True):
    """An apply, from its request to its end. One at a time in a world: `ended_at` of the others is set."""

    __tablename__ = "apply"
    __table_args__ = (
        Index(
            "apply_running",
            "world_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )
    world_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    seq: int
    body: str = Field(sa_column=_text())
    plan: str = Field(sa_column=_text())
    requested_by: str
    requested_at: str
    state: str
    outcome: str = ""
    reason: str = ""
    snapshot: str = Field(default="{}", sa_column=_text())
    epoch_before: int = 0
    epoch_after: int = 0
    ended_at: str | None = None


class ApplyStepRow(SQLModel, table=True):
    """A step that was done, and what it answered: done once for ever, whatever the world is now."""

    __tablename__ = "apply_step"
    world_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    step: str = Field(primary_key=True)
    started_at: str
    ended_at: str | None = None
    answer: str = Field(default="{}", sa_column=_text())


class ApprovalRow(SQLModel, table=True):
    """What a person said of an apply or a promotion. `via`: the Gateway, which knows who it was, or a signal sent straight to Temporal, which claims it."""

    __tablename__ = "approval"
    __table_args__ = (Index("approval_of", "world_id", "subject"),)
    approval_id: str = Field(primary_key=True)
    world_id: str
    subject: str
    actor: str
    verdict: str
    reason: str
    via: str
    counts: bool
    at: str
    taken_at: str | None = None


class AckRow(SQLModel, table=True):
    """Who has heard of a freeze or unfreeze. `late`: after the apply had stopped waiting."""

    __tablename__ = "ack"
    world_id: str = Field(primary_key=True)
    sequence: int = Field(primary_key=True)
    holder: str = Field(primary_key=True)
    kind: str
    at: str
    late: bool


class GatewayRow(SQLModel, table=True):
    """A Gateway that serves this store, until `expires_at`."""

    __tablename__ = "gateway"
    gateway_id: str = Field(primary_key=True)
    expires_at: str


# orders


class FenceRow(SQLModel, table=True):
    """What decides about a world's orders, in one row that an order reads in its own transaction."""

    __tablename__ = "fence"
    world_id: str = Field(primary_key=True)
    epoch: int = 1
    state: str = "open"
    holder: str = ""
    halted: str = ""
    allow_live: bool = False
    live_edge: bool = False
    fresh_until: str = ""
    max_orders: int | None = None
    max_refused: int | None = None
    minute: str = ""
    orders: int = 0
    refused: int = 0


class OrderLogRow(SQLModel, table=True):
    """Every order with its verdict, every fill, and every change of the fence, in one order. Rows are never changed."""

    __tablename__ = "order_log"
    __table_args__ = (
        Index(
            "order_log_once",
            "ref",
            unique=True,
            sqlite_where=text("kind IN ('accepted', 'refused')"),
            postgresql_where=text("kind IN ('accepted', 'refused')"),
        ),
        Index(
            "order_log_ended",
            "ref",
            unique=True,
            sqlite_where=text("kind IN ('filled', 'cancelled')"),
            postgresql_where=text("kind IN ('filled', 'cancelled')"),
        ),
        Index("order_log_world", "world_id", "seq"),
    )
    seq: int | None = Field(default=None, sa_column=_seq())
    at: str
    world_id: str
    kind: str
    ref: str
    epoch: int
    strategy_id: str = ""
    reason: str = ""
    body: str = Field(default="", sa_column=_text())


class OpenOrderRow(SQLModel, table=True):
    """An accepted order that no venue has ended yet."""

    __tablename__ = "open_order"
    order_id: str = Field(primary_key=True)
    world_id: str = Field(index=True)
    accepted_at: str = Field(index=True)


class SessionRow(SQLModel, table=True):
    """A running strategy. It holds a lease on its world until `expires_at`, unless it ended before."""

    __tablename__ = "session"
    session_id: str = Field(primary_key=True)
    world_id: str = Field(index=True)
    strategy_id: str
    name: str
    actor: str
    runner: str
    host: str
    execution_domain: str
    opened_at: str
    expires_at: str = Field(index=True)
    ended_at: str | None = None
    end_reason: str = ""
    report: str = Field(default="{}", sa_column=_text())


class OutcomeRow(SQLModel, table=True):
    """How a submission ended, by run."""

    __tablename__ = "outcome"
    __table_args__ = (Index("outcome_of", "world_id", "strategy_id", "seq"),)
    seq: int | None = Field(default=None, sa_column=_seq())
    run_id: str = Field(unique=True)
    world_id: str
    strategy_id: str
    body: str = Field(sa_column=_text())
    created_at: str
