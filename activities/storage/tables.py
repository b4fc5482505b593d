"""Every table, by owner. Bodies are canonical JSON text; times are UTC, ISO 8601 text, so that both databases order them alike."""

from sqlalchemy import BigInteger, Column, Index, Integer, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

_Seq = BigInteger().with_variant(Integer, "sqlite")


def _seq() -> "Column[int]":
    return Column(_Seq, primary_key=True, autoincrement=True)


def _text() -> "Column[str]":
    return Column(Text, nullable=False)


# storage


class StoreIdentity(SQLModel, table=True):
    """One row: the id that workflows carry, so that a worker of another store refuses their work."""

    __tablename__ = "store_identity"
    store_id: str = Field(primary_key=True)


class Audit(SQLModel, table=True):
    """Who did what: one row for every transaction that changed something."""

    __tablename__ = "audit"
    seq: int | None = Field(default=None, sa_column=_seq())
    at: str
    actor: str
    action: str = Field(index=True)
    world_id: str = Field(index=True)
    subject: str
    correlation_id: str
    before: str = Field(sa_column=_text())
    after: str = Field(sa_column=_text())


class Outbox(SQLModel, table=True):
    """What others will be told, written with the change itself. `key` keeps order: the world's, or the subject's where there is no world."""

    __tablename__ = "outbox"
    __table_args__ = (Index("outbox_waiting", "seq", sqlite_where=text("published_at IS NULL"), postgresql_where=text("published_at IS NULL")),)
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


class CommitLog(SQLModel, table=True):
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


class GraphNode(SQLModel, table=True):
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


class GraphEdge(SQLModel, table=True):
    __tablename__ = "graph_edge"
    parent: str = Field(primary_key=True)
    child: str = Field(primary_key=True, index=True)


class GraphStrategy(SQLModel, table=True):
    __tablename__ = "graph_strategy"
    strategy_id: str = Field(primary_key=True)
    name: str
    dag: str = Field(sa_column=_text())
    created_at: str


class Sentinel(SQLModel, table=True):
    """The version boundary in front of a strategy in a world."""

    __tablename__ = "sentinel"
    __table_args__ = (UniqueConstraint("world_id", "strategy_id"),)
    sentinel_id: str = Field(primary_key=True)
    world_id: str
    strategy_id: str
    version: str
    traffic_weight: float
    created_at: str


class Diff(SQLModel, table=True):
    """The answer of a diff, by workflow run: asked again, it answers the same."""

    __tablename__ = "graph_diff"
    run_id: str = Field(primary_key=True)
    body: str = Field(sa_column=_text())


class Queue(SQLModel, table=True):
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


class QueueTag(SQLModel, table=True):
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


class PolicyRow(SQLModel, table=True):
    __tablename__ = "policy"
    world_id: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    body: str = Field(sa_column=_text())
    created_at: str


class Binding(SQLModel, table=True):
    """A strategy in a world (WSB). `seq` is its age: ties in score go to the older."""

    __tablename__ = "binding"
    __table_args__ = (UniqueConstraint("world_id", "strategy_id"),)
    seq: int | None = Field(default=None, sa_column=_seq())
    world_id: str
    strategy_id: str
    name: str
    created_at: str


class RunContext(SQLModel, table=True):
    """What the services decided about one run: context, bindings, costs, the data's range."""

    __tablename__ = "run_context"
    run_id: str = Field(primary_key=True)
    world_id: str
    strategy_id: str
    body: str = Field(sa_column=_text())
    created_at: str


class Evidence(SQLModel, table=True):
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


class Decision(SQLModel, table=True):
    __tablename__ = "decision"
    seq: int | None = Field(default=None, sa_column=_seq())
    world_id: str = Field(index=True)
    policy_version: int
    etag: str
    body: str = Field(sa_column=_text())
    created_at: str


class EvaluationRequest(SQLModel, table=True):
    """Which decision answered which request: asked again, it answers the same."""

    __tablename__ = "evaluation_request"
    request_id: str = Field(primary_key=True)
    world_id: str
    decision_seq: int


class Activation(SQLModel, table=True):
    __tablename__ = "activation"
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    etag: str
    body: str = Field(sa_column=_text())


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
