"""Every table, by owner, lowest layer first.

Bodies are canonical JSON text. Times are UTC in ISO 8601 text, which both databases sort alike.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from qmtl_sdk.contracts.dag import MAX_TAG
from qmtl_sdk.contracts.events import MAX_SUBJECT, MAX_TYPE

_Seq = BigInteger().with_variant(Integer, "sqlite")


def _seq() -> "Column[int]":
    return Column(_Seq, primary_key=True, autoincrement=True)


def _number() -> "Column[int]":
    return Column(BigInteger, nullable=False)


def _text() -> "Column[str]":
    return Column(Text, nullable=False)


# storage


class StoreIdentityRow(SQLModel, table=True):
    """The id of this store, in one row. Workflows carry it; workers of another store refuse them."""

    __tablename__ = "store_identity"
    store_id: str = Field(primary_key=True)


class AuditRow(SQLModel, table=True):
    """Who did what. Rows never change.

    Each row holds the hash of itself and of the row before it in its chain: the world's, or the one of
    what belongs to no world.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index("audit_chain", "chain", "number", unique=True),
        Index(
            "audit_promotion",
            "chain",
            "correlation_id",
            sqlite_where=text("substr(action, 1, 10) = 'promotion.'"),
            postgresql_where=text("substr(action, 1, 10) = 'promotion.'"),
        ),
    )
    seq: int | None = Field(default=None, sa_column=_seq())
    at: str
    actor: str
    action: str
    world_id: str
    subject: str
    correlation_id: str
    before: str = Field(sa_column=_text())
    after: str = Field(sa_column=_text())
    chain: str = Field(default="", sa_column_kwargs={"server_default": ""})
    number: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    hash: str = Field(default="", sa_column_kwargs={"server_default": ""})


class AuditHeadRow(SQLModel, table=True):
    """The end of a chain of audit rows, so that missing rows at the end are noticed."""

    __tablename__ = "audit_head"
    chain: str = Field(primary_key=True)
    number: int
    hash: str


class ArchiveRow(SQLModel, table=True):
    """Rows of the table `source` that were moved to an artifact.

    `scope` is the chain of audit rows, or the world of the order log; empty for other tables. `first` and
    `last` are the numbers of the rows in their scope, where they have numbers.
    """

    __tablename__ = "archive"
    __table_args__ = (Index("archive_of", "source", "scope", "last"),)
    seq: int | None = Field(default=None, sa_column=_seq())
    source: str
    scope: str
    first: int = Field(sa_column=_number())
    last: int = Field(sa_column=_number())
    rows: int
    artifact: str
    at: str


class OutboxRow(SQLModel, table=True):
    """Events to publish, written in the transaction of the change that they report.

    `key` keeps order: the world's id, or the subject where there is no world. `subject_hash` stands for the
    subject, which may be too long for an index.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index(
            "outbox_waiting",
            "seq",
            sqlite_where=text("published_at IS NULL"),
            postgresql_where=text("published_at IS NULL"),
        ),
        Index("outbox_of_subject", "key", "subject_hash", "type", "seq"),
    )
    seq: int | None = Field(default=None, sa_column=_seq())
    event_id: str = Field(unique=True)
    type: str = Field(max_length=MAX_TYPE)
    key: str
    world_id: str = Field(default="", sa_column_kwargs={"server_default": ""})
    subject: str = Field(default="", max_length=MAX_SUBJECT, sa_column_kwargs={"server_default": ""})
    subject_hash: str = Field(default="", sa_column_kwargs={"server_default": ""})
    at: str
    data: str = Field(sa_column=_text())
    published_at: str | None = None


class DeadLetterRow(SQLModel, table=True):
    """A row of the outbox, by its `seq`, that the relay could not publish and set aside at `at`.

    The outbox row counts as published, so that the relay goes on. It is kept until an operator retries or
    drops it.
    """

    __tablename__ = "dead_letter"
    seq: int = Field(sa_column=Column(_Seq, primary_key=True, autoincrement=False))
    reason: str = Field(sa_column=_text())
    at: str


# processes


class ProcessRow(SQLModel, table=True):
    """The newest heartbeat of a process, of `seen_at`, in a row that the process writes itself.

    `worked_at` is when its loop last worked, empty before the first time; `since` is when it entered its
    `state` (`activities.storage.heartbeats`).
    """

    __tablename__ = "process"
    process_id: str = Field(primary_key=True)
    name: str
    pid: int
    host: str
    state: str
    fault: str
    started_at: str
    since: str
    seen_at: str
    worked_at: str


# access


class PrincipalRow(SQLModel, table=True):
    """Someone who may have tokens, unless they are disabled."""

    __tablename__ = "principal"
    name: str = Field(primary_key=True)
    created_by: str
    created_at: str
    disabled_by: str = ""
    disabled_at: str | None = None


class TokenRow(SQLModel, table=True):
    """An issued token, without its secret. `issuers` (JSON) and `parent_id` are as in `TokenInfo`."""

    __tablename__ = "token"
    __table_args__ = (
        Index("token_of", "subject", "expires_at"),
        Index("token_listed", "created_at", "token_id"),
        Index(
            "token_revoked",
            "expires_at",
            sqlite_where=text("revoked_at IS NOT NULL"),
            postgresql_where=text("revoked_at IS NOT NULL"),
        ),
    )
    token_id: str = Field(primary_key=True)
    subject: str
    grants: str = Field(sa_column=_text())
    created_by: str
    issuers: str = Field(sa_column=_text())
    parent_id: str = ""
    created_at: str
    expires_at: str
    revoked_at: str | None = None


# queues


class QueueRow(SQLModel, table=True):
    """The topic of a node in a world and domain."""

    __tablename__ = "queue"
    __table_args__ = (
        UniqueConstraint("node_id", "world_id", "execution_domain"),
        Index(
            "queue_kept",
            "topic",
            sqlite_where=text("dropped_at IS NULL"),
            postgresql_where=text("dropped_at IS NULL"),
        ),
    )
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
    """A label tag of a queue's node. Tag queries find queues by it, in the queue's world and domain."""

    __tablename__ = "queue_tag"
    __table_args__ = (Index("queue_tag_of", "world_id", "execution_domain", "tag"),)
    topic: str = Field(primary_key=True)
    tag: str = Field(primary_key=True, max_length=MAX_TAG)
    world_id: str
    execution_domain: str


class TagQueryRow(SQLModel, table=True):
    """A tag query of a strategy in a world and domain. An event is published when its result changes."""

    __tablename__ = "tag_query"
    world_id: str = Field(primary_key=True)
    execution_domain: str = Field(primary_key=True)
    node_id: str = Field(primary_key=True)
    tags: str = Field(sa_column=_text())
    interval_s: int
    match_mode: str
    created_at: str


# sessions


class SessionRow(SQLModel, table=True):
    """A running strategy. It holds a lease on its world until `expires_at`, unless `ended_at` is set.

    Only `actor` may act in it, with the secret of `secret_hash`. `newest_bar` is the newest close that it has
    reported, in the world's time. Ended sessions are kept, so what is read all the time has indexes without
    them.
    """

    __tablename__ = "session"
    __table_args__ = (
        Index(
            "session_expiring",
            "expires_at",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index(
            "session_open",
            "world_id",
            "opened_at",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index(
            "session_open_newest",
            "opened_at",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("session_of", "world_id", "opened_at"),
        Index("session_opened", "opened_at"),
        Index("session_ended", "strategy_id", "world_id", "execution_domain", "ended_at"),
        Index("session_newest_bar", "strategy_id", "world_id", "newest_bar"),
        Index(
            "session_old",
            "ended_at",
            sqlite_where=text("ended_at IS NOT NULL"),
            postgresql_where=text("ended_at IS NOT NULL"),
        ),
    )
    session_id: str = Field(primary_key=True)
    world_id: str
    strategy_id: str
    name: str
    actor: str
    secret_hash: str
    runner: str
    host: str
    execution_domain: str
    opened_at: str
    expires_at: str
    ended_at: str | None = None
    end_reason: str = ""
    report: str = Field(default="{}", sa_column=_text())
    newest_bar: str = ""


# graph


class GraphNodeRow(SQLModel, table=True):
    """A node of the global strategy graph. Rows are only added."""

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
    """An edge of the global strategy graph."""

    __tablename__ = "graph_edge"
    parent: str = Field(primary_key=True)
    child: str = Field(primary_key=True, index=True)


class GraphStrategyRow(SQLModel, table=True):
    """A strategy with its DAG."""

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
    """The result of a diff, by workflow run. A repeated diff of the run returns it."""

    __tablename__ = "graph_diff"
    run_id: str = Field(primary_key=True)
    body: str = Field(sa_column=_text())


# worlds


class WorldRow(SQLModel, table=True):
    """A world with its spec."""

    __tablename__ = "world"
    world_id: str = Field(primary_key=True)
    spec: str = Field(sa_column=_text())
    etag: str
    created_at: str
    policy_version: int | None = None
    pinned_fingerprint: str = Field(default="", sa_column_kwargs={"server_default": ""})
    state: str = Field(default="active", sa_column_kwargs={"server_default": "active"})


class PolicyRow(SQLModel, table=True):
    """A version of a world's policy. Rows never change."""

    __tablename__ = "policy"
    world_id: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    body: str = Field(sa_column=_text())
    created_at: str


class BindingRow(SQLModel, table=True):
    """A strategy in a world (WSB). `seq` is its age: of two equal scores the older strategy wins."""

    __tablename__ = "binding"
    __table_args__ = (UniqueConstraint("world_id", "strategy_id"),)
    seq: int | None = Field(default=None, sa_column=_seq())
    world_id: str
    strategy_id: str
    name: str
    created_at: str


class EdgeOverrideRow(SQLModel, table=True):
    """An edge between nodes or domains (`domain:backtest`) of a world that was opened or closed."""

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


# submissions


class CommitLogRow(SQLModel, table=True):
    """Submissions in the order of their arrival. `ack` is the response to the submission.

    `lease_id` is the compute lease that was granted to `actor` with it; empty where none was.
    """

    __tablename__ = "commit_log"
    __table_args__ = (
        Index(
            "commit_log_waiting",
            "seq",
            sqlite_where=text("run_id IS NULL AND refused IS NULL"),
            postgresql_where=text("run_id IS NULL AND refused IS NULL"),
        ),
        Index(
            "commit_log_run",
            "run_id",
            sqlite_where=text("run_id IS NOT NULL"),
            postgresql_where=text("run_id IS NOT NULL"),
        ),
    )
    seq: int | None = Field(default=None, sa_column=_seq())
    idempotency_key: str = Field(unique=True)
    actor: str
    world_id: str
    strategy_id: str
    body_hash: str
    body: str = Field(sa_column=_text())
    received_at: str
    run_id: str | None = None
    ack: str | None = Field(default=None, sa_column=Column(Text))
    lease_id: str = Field(default="", sa_column_kwargs={"server_default": ""})
    refused: str | None = Field(default=None, sa_column=Column(Text))


class RunContextRow(SQLModel, table=True):
    """What the services decided about a run: context, bindings, costs, range of the data."""

    __tablename__ = "run_context"
    __table_args__ = (
        Index("run_context_newest", "strategy_id", "created_at"),
        Index("run_context_of", "world_id", "strategy_id", "created_at"),
    )
    run_id: str = Field(primary_key=True)
    world_id: str
    strategy_id: str
    body: str = Field(sa_column=_text())
    created_at: str


class EvidenceRow(SQLModel, table=True):
    """The metrics of a run, or why it has none. `kind` is that of `EvidenceBody`.

    `as_of` is until when the data of measured evidence was read (ISO 8601, UTC), and empty for other kinds:
    what a later `as_of` gave is newer, in whatever order the runs ended. `first_seq` is the number of the
    first evidence with the same content; NULL where this is the first.
    """

    __tablename__ = "evidence"
    __table_args__ = (
        Index("evidence_of", "world_id", "strategy_id", "kind", "as_of", "seq"),
        Index("evidence_content", "world_id", "strategy_id", "content_hash", "seq"),
    )
    seq: int | None = Field(default=None, sa_column=_seq())
    run_id: str = Field(unique=True)
    world_id: str
    strategy_id: str
    body: str = Field(sa_column=_text())
    kind: str
    as_of: str
    content_hash: str
    first_seq: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    created_at: str


class ValidationRow(SQLModel, table=True):
    """The result of a validation, by EvalKey.

    Another dataset, contract, domain or code makes another validation.
    """

    __tablename__ = "validation"
    __table_args__ = (Index("validation_at", "created_at"),)
    eval_key: str = Field(primary_key=True)
    world_id: str = Field(index=True)
    node_id: str
    execution_domain: str
    result: str
    body: str = Field(sa_column=_text())
    created_at: str


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


# fence


class FenceRow(SQLModel, table=True):
    """What decides about a world's orders, in one row that each order reads in its own transaction.

    `halt_epoch` is the epoch of the last halt: an order that was accepted before it and not sent is
    cancelled. `edge_closings` counts how often an operator has closed the edge to live. `rebalancing`: the
    run that has locked the world against applies and other rebalancings. `activation_sequence` is the number
    of the newest change of an activation.
    """

    __tablename__ = "fence"
    world_id: str = Field(primary_key=True)
    epoch: int = 1
    state: str = "open"
    holder: str = ""
    halted: str = ""
    allow_live: bool = False
    live_edge: bool = False
    edge_closings: int = 0
    fresh_until: str = ""
    halt_epoch: int = 0
    on_halt: str = "cancel"
    max_orders: int | None = None
    max_refused: int | None = None
    symbols: str = Field(default="", sa_column=_text())
    max_quantity: str = ""
    max_notional: str = ""
    position_limits: str = Field(default="", sa_column=_text())
    minute: str = ""
    orders: int = 0
    refused: int = 0
    rebalancing: str = ""
    activation_sequence: int = 0


class ActivationRow(SQLModel, table=True):
    """Whether a strategy is active in a world, and in which mode."""

    __tablename__ = "activation"
    __table_args__ = (
        Index(
            "activation_trading",
            "world_id",
            sqlite_where=text("active AND mode IN ('paper', 'live')"),
            postgresql_where=text("active AND mode IN ('paper', 'live')"),
        ),
    )
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    etag: str
    active: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    mode: str = Field(default="", sa_column_kwargs={"server_default": ""})
    body: str = Field(sa_column=_text())


class StrategyHaltRow(SQLModel, table=True):
    """A halted strategy of a world: who halted it, since when and why. Lifting the halt removes the row."""

    __tablename__ = "strategy_halt"
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    reason: str
    since: str
    halted_by: str


class AckRow(SQLModel, table=True):
    """An acknowledgement of a freeze or unfreeze. `late`: after the apply stopped waiting."""

    __tablename__ = "ack"
    __table_args__ = (Index("ack_at", "at"),)
    world_id: str = Field(primary_key=True)
    sequence: int = Field(primary_key=True)
    holder: str = Field(primary_key=True)
    kind: str
    at: str
    late: bool


class GatewayRow(SQLModel, table=True):
    """A Gateway that has served this store since `started_at`, and does until `expires_at`."""

    __tablename__ = "gateway"
    gateway_id: str = Field(primary_key=True)
    started_at: str
    expires_at: str


class OrderLogRow(SQLModel, table=True):
    """Every order with its verdict, or withheld, every change of its state and of the fence.

    Rows never change.

    `epoch` is the world's when it was written. A world's rows are written under its fence's lock, so `seq` is
    the order of their commits.
    """

    __tablename__ = "order_log"
    __table_args__ = (
        Index(
            "order_log_once",
            "ref",
            unique=True,
            sqlite_where=text("kind IN ('accepted', 'refused', 'withheld')"),
            postgresql_where=text("kind IN ('accepted', 'refused', 'withheld')"),
        ),
        Index(
            "order_log_ended",
            "ref",
            unique=True,
            sqlite_where=text("kind IN ('filled', 'cancelled', 'rejected', 'expired')"),
            postgresql_where=text("kind IN ('filled', 'cancelled', 'rejected', 'expired')"),
        ),
        Index(
            "order_log_underway",
            "ref",
            sqlite_where=text("kind IN ('sent', 'partially_filled', 'fill')"),
            postgresql_where=text("kind IN ('sent', 'partially_filled', 'fill')"),
        ),
        Index("order_log_world", "world_id", "seq"),
        Index(
            "order_log_reason",
            "world_id",
            "reason",
            "seq",
            sqlite_where=text("kind IN ('refused', 'withheld')"),
            postgresql_where=text("kind IN ('refused', 'withheld')"),
        ),
        Index(
            "order_log_strategy",
            "world_id",
            "strategy_id",
            "reason",
            "seq",
            sqlite_where=text("kind IN ('accepted', 'refused', 'withheld')"),
            postgresql_where=text("kind IN ('accepted', 'refused', 'withheld')"),
        ),
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


class OrderSealRow(SQLModel, table=True):
    """A segment of a world's order log, by its number: the rows after the segment before it, up to `last`.

    The audit trail holds the same hash, so that rows which are changed later are found.
    """

    __tablename__ = "order_seal"
    world_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    first: int = Field(sa_column=_number())
    last: int = Field(sa_column=_number())
    rows: int
    hash: str
    at: str


class CacheHitRow(SQLModel, table=True):
    """A cache hit from another context, once for each node that a session or a run reported."""

    __tablename__ = "cache_hit"
    reporter: str = Field(primary_key=True)
    node_id: str = Field(primary_key=True)
    world_id: str
    strategy_id: str
    actor: str
    at: str


class OpenOrderRow(SQLModel, table=True):
    """An accepted order that has not ended. `epoch` is the world's when it was accepted.

    `state` is accepted, sent or partially_filled. `sent_at`: when it was last marked as sent.
    `acknowledged`: its venue has acknowledged it. `filled_quantity`: what was filled so far; empty for none.
    `cancel_reason`: why its venue is asked to cancel it; empty where it is not asked. `next_at`: when the
    router looks at it again. `quantity` is signed: positive buys. `price`: its reference price, or empty.
    `origin`: see `Order.origin`.
    """

    __tablename__ = "open_order"
    __table_args__ = (
        Index("open_order_due", "execution_domain", "world_id", "next_at"),
        Index("open_order_next", "execution_domain", "next_at", "world_id"),
        Index("open_order_world", "world_id", "strategy_id", "symbol"),
    )
    order_id: str = Field(primary_key=True)
    world_id: str
    strategy_id: str
    execution_domain: str
    symbol: str
    quantity: str
    price: str = ""
    epoch: int
    accepted_at: str
    next_at: str
    state: str = "accepted"
    sent_at: str = ""
    acknowledged: bool = False
    filled_quantity: str = ""
    cancel_reason: str = ""
    origin: str = Field(default="strategy", sa_column_kwargs={"server_default": "strategy"})


class FlattenRow(SQLModel, table=True):
    """A request to flatten a strategy of a world, or all (`strategy_id` empty), with its first answer."""

    __tablename__ = "flatten"
    world_id: str = Field(primary_key=True)
    flatten_id: str = Field(primary_key=True)
    strategy_id: str
    actor: str
    reason: str
    at: str
    answer: str = Field(sa_column=_text())


class FlatteningRow(SQLModel, table=True):
    """A strategy whose positions at an account are being closed. The row goes when they are.

    `flatten_id`: the first request, or the apply, that asked for it. `faults` (JSON): the symbols of which a
    venue has ended orders before they were filled, and `next_at` is when the first of them gets another;
    empty where none waits for a time. `cancel_reason`: who cancelled it, and why; then the row stays only
    until its orders have ended. `ended_at`: when it ended and left something, which the row says until the
    next flatten.
    """

    __tablename__ = "flattening"
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    execution_domain: str = Field(primary_key=True)
    account: str
    flatten_id: str
    since: str
    faults: str = Field("", sa_column=_text())
    next_at: str = ""
    cancel_reason: str = ""
    ended_at: str = ""


class TargetRow(SQLModel, table=True):
    """What a strategy wants to hold of a symbol in a domain, as it last said, and what that means in units.

    `units` were sized at `price`, with the strategy's `weight` and the world's `capital` of that time. They
    stay while those and the target do. `decided_at` is of the bar, `updated_at` the store's time.
    """

    __tablename__ = "target"
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    execution_domain: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    unit: str
    value: str
    weight: str
    capital: str
    price: str
    units: str
    decided_at: str
    updated_at: str


class LedgerRow(SQLModel, table=True):
    """An entry of the ledger with the position after it. Rows never change.

    They follow from the rows of the order log, and can be made again from them. `ref` names the entry in its
    account; `entry` and `after` are JSON; `held`: the position after it is not flat. Written under the
    world's fence, `at` never falls in a position.
    """

    __tablename__ = "ledger"
    __table_args__ = (
        Index("ledger_once", "world_id", "account", "ref", unique=True),
        Index("ledger_world", "world_id", "seq"),
        Index("ledger_strategy", "world_id", "strategy_id", "seq"),
        Index("ledger_position", "world_id", "strategy_id", "account", "symbol", "at", "seq"),
    )
    seq: int | None = Field(default=None, sa_column=_seq())
    at: str
    world_id: str
    strategy_id: str
    account: str
    symbol: str
    ref: str
    held: bool
    entry: str = Field(sa_column=_text())
    after: str = Field(sa_column=_text())


class PositionRow(SQLModel, table=True):
    """The newest state of a position of the ledger, and when it last changed.

    `marked_at`: when the price of its mark was recorded; empty where it has none. `held`: it is not flat.
    """

    __tablename__ = "position"
    __table_args__ = (
        Index(
            "position_held",
            "world_id",
            "strategy_id",
            "account",
            "symbol",
            sqlite_where=text("held"),
            postgresql_where=text("held"),
        ),
        Index(
            "position_account",
            "account",
            "symbol",
            "world_id",
            "strategy_id",
            sqlite_where=text("held"),
            postgresql_where=text("held"),
        ),
        Index("position_mark", "account", "symbol", "marked_at", "world_id", "strategy_id"),
    )
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    account: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    at: str
    marked_at: str
    held: bool
    after: str = Field(sa_column=_text())


class ReconciliationRow(SQLModel, table=True):
    """The newest comparison of a broker's account with ledger and order log (`body`)."""

    __tablename__ = "reconciliation"
    account: str = Field(primary_key=True)
    at: str
    body: str = Field(sa_column=_text())


class ExposureRow(SQLModel, table=True):
    """What a strategy holds and has earned at an account, added up; with strategy_id `""`, its whole world.

    `gross`: the notional of its positions at their marks; `net`: with signs. `profit`: what it has earned,
    open positions at their marks, less fees. `peak`: the highest profit so far, 0 at first. `fees`, `traded`:
    all fees, and the notional of all fills. `day`: that of the newest entry (UTC); it never falls.
    """

    __tablename__ = "exposure"
    __table_args__ = (
        Index(
            "exposure_account",
            "account",
            sqlite_where=text("strategy_id = ''"),
            postgresql_where=text("strategy_id = ''"),
        ),
    )
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    account: str = Field(primary_key=True)
    gross: str
    profit: str
    peak: str
    net: str
    fees: str
    traded: str
    day: str


class ExposureDayRow(SQLModel, table=True):
    """An exposure as it was at the end of a day (UTC) in which an entry was booked; see `ExposureRow`.

    So far on the newest one. A day without a row was as the one before.
    """

    __tablename__ = "exposure_day"
    __table_args__ = ({"sqlite_with_rowid": False},)  # the days of an owner lie together, to be read in order
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    account: str = Field(primary_key=True)
    day: str = Field(primary_key=True)
    gross: str
    net: str
    profit: str
    fees: str
    traded: str


class OrderCountRow(SQLModel, table=True):
    """How many orders of a world were accepted, or refused for a reason."""

    __tablename__ = "order_count"
    world_id: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)
    reason: str = Field(primary_key=True)
    orders: int


# allocation


class AllocationRow(SQLModel, table=True):
    """The share of a world, with those of its strategies that have one of their own (`body`).

    `scales`: by what rebalancings have multiplied what its strategies trade with (JSON); empty: none did.
    `profits`: what the world had earned at each account when its share was last set, at `updated_at` (JSON).
    `past`: the scales that it had before, each with the time until when (JSON).
    """

    __tablename__ = "allocation"
    world_id: str = Field(primary_key=True)
    body: str = Field(sa_column=_text())
    scales: str = Field(default="", sa_column=_text())
    profits: str = Field(default="{}", sa_column=_text())
    past: str = Field(default="[]", sa_column=_text())
    updated_at: str


class RebalancingScheduleRow(SQLModel, table=True):
    """A schedule of rebalancings, and what its newest firing decided.

    `body` and `issuers` (of the token with which it was set) are JSON, and so is `firing`; empty: none yet.
    `live`: whoever set it confirmed live trading. `state`: `wanted` until Temporal has it (`set`), `removed`
    until Temporal has forgotten it.
    """

    __tablename__ = "rebalancing_schedule"
    name: str = Field(primary_key=True)
    body: str = Field(sa_column=_text())
    set_by: str
    token_id: str
    issuers: str = Field(sa_column=_text())
    live: bool
    set_at: str
    state: str
    fired_at: str = ""
    firing: str = Field(default="", sa_column=_text())


class RebalancingRow(SQLModel, table=True):
    """A run of a rebalancing, from its request to its end.

    `body`, `plan`, `worlds` and `roles` (lists) and `report` are JSON. `locked_at`: when its worlds were
    locked and their shares changed; empty before. `secret`: part of what the ids of its orders are made of,
    so that nobody uses one before.
    """

    __tablename__ = "rebalancing"
    __table_args__ = (
        Index("rebalancing_requested", "requested_at"),
        Index(
            "rebalancing_running",
            "requested_at",
            "run_id",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )
    run_id: str = Field(primary_key=True)
    body: str = Field(sa_column=_text())
    plan: str = Field(sa_column=_text())
    plan_etag: str
    plan_hash: str
    worlds: str = Field(sa_column=_text())
    title: str
    requested_by: str
    requested_issuers: str = Field(default="[]", sa_column=_text())
    requested_at: str
    state: str
    outcome: str = ""
    reason: str = ""
    approvals: int = 0
    roles: str = "[]"
    approve_within_s: float = 0.0
    approve_until: str = ""
    secret: str = Field(repr=False)
    locked_at: str = ""
    deadline: str = ""
    aborted_by: str = ""
    abort_reason: str = ""
    report: str = Field(default="", sa_column=_text())
    ended_at: str | None = None


class RebalancingTradeRow(SQLModel, table=True):
    """A change of a strategy's position by a run: `number` is its place, `step` when it is ordered.

    Quantities and prices are decimals as text, signed as `RebalanceTrade` has them. `goal`: the position
    that the trade leads to; `follows`: it is the size of its strategy's target.
    """

    __tablename__ = "rebalancing_trade"
    __table_args__ = (Index("rebalancing_trade_step", "run_id", "step", "state", "world_id", "number"),)
    run_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    world_id: str
    strategy_id: str
    account: str
    symbol: str
    step: str
    quantity: str
    crossed: str
    mark: str
    price: str
    time_in_force: str
    reduce_only: bool
    goal: str
    follows: bool
    order_id: str
    state: str
    filled: str = ""
    reason: str = ""


# decisions


class DecisionRow(SQLModel, table=True):
    """A decision of a world."""

    __tablename__ = "decision"
    __table_args__ = (
        Index("decision_of", "world_id", "seq"),
        Index("decision_since", "world_id", "created_at", "seq"),
    )
    seq: int | None = Field(default=None, sa_column=_seq())
    world_id: str
    policy_version: int
    etag: str
    body: str = Field(sa_column=_text())
    created_at: str


class EvaluationRequestRow(SQLModel, table=True):
    """The decision that answered a request. A repeated request gets the same decision."""

    __tablename__ = "evaluation_request"
    request_id: str = Field(primary_key=True)
    world_id: str
    decision_seq: int


class HysteresisRow(SQLModel, table=True):
    """The hysteresis state of a strategy.

    How often in a row it passed or failed, and since when (world time) it is in or out.
    """

    __tablename__ = "hysteresis"
    world_id: str = Field(primary_key=True)
    strategy_id: str = Field(primary_key=True)
    body: str = Field(sa_column=_text())


class DecisionInputsRow(SQLModel, table=True):
    """The inputs of a decision, so that another policy can be tried on them."""

    __tablename__ = "decision_inputs"
    decision_seq: int = Field(sa_column=Column(_Seq, primary_key=True, autoincrement=False))
    world_id: str = Field(index=True)
    body: str = Field(sa_column=_text())


# applies


class ApplyRow(SQLModel, table=True):
    """An apply, from its request to its end. At most one in a world has no `ended_at`.

    `seq` numbers the applies of a world.
    """

    __tablename__ = "apply"
    __table_args__ = (
        Index(
            "apply_running",
            "world_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("apply_of", "world_id", "seq"),
    )
    world_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    seq: int
    body: str = Field(sa_column=_text())
    plan: str = Field(sa_column=_text())
    requested_by: str
    requested_issuers: str = Field(default="[]", sa_column=_text())
    requested_at: str
    state: str
    outcome: str = ""
    reason: str = ""
    snapshot: str = Field(default="{}", sa_column=_text())
    epoch_before: int = 0
    epoch_after: int = 0
    aborted_by: str = ""
    abort_reason: str = ""
    ended_at: str | None = None


class ApplyStepRow(SQLModel, table=True):
    """A step of an apply, with its result.

    A step is done once: a repetition returns the stored result, whatever the world's state is by then. It
    ends where the next one begins.
    """

    __tablename__ = "apply_step"
    world_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    step: str = Field(primary_key=True)
    started_at: str
    result: str = Field(default="{}", sa_column=_text())


class RuleChangeRow(SQLModel, table=True):
    """A change of a world's rules that other people approve. `rules` is the hash of those that it changes."""

    __tablename__ = "rule_change"
    __table_args__ = (
        Index("rule_change_of", "world_id", "requested_at"),
        Index("rule_change_state", "world_id", "state"),
    )
    change_id: str = Field(primary_key=True)
    world_id: str
    body: str = Field(sa_column=_text())
    loosens: str = Field(sa_column=_text())
    rules: str
    required: int
    state: str
    requested_by: str
    requested_issuers: str = Field(default="[]", sa_column=_text())
    requested_at: str
    expires_at: str


class ApprovalRow(SQLModel, table=True):
    """An approval or rejection of an apply or a rule change by one person.

    `about`: `apply` or `change`; what a person said of one never counts for the other, whatever its id.
    `via` says how it arrived: through the Gateway, which knows the person, or as a signal sent straight to
    Temporal, which only claims a name. `plan_hash` is that of the plan, or of the rule change; a direct
    signal has none. `read_at` is when the workflow read it.
    """

    __tablename__ = "approval"
    __table_args__ = (
        Index("approval_of", "world_id", "subject"),
        Index(
            "approval_unread",
            "world_id",
            "subject",
            sqlite_where=text("read_at IS NULL"),
            postgresql_where=text("read_at IS NULL"),
        ),
    )
    approval_id: str = Field(primary_key=True)
    world_id: str
    about: str
    subject: str
    actor: str
    verdict: str
    reason: str
    via: str
    counts: bool
    plan_hash: str = ""
    at: str
    read_at: str | None = None
