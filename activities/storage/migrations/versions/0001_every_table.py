"""every table"""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

revision = "schema_0001"
down_revision = None
branch_labels = None
depends_on = None

# Tables whose rows the database itself refuses to change, and to remove unless an archive names them: by
# their scope and their number in it.
_APPEND_ONLY = {"audit": ("chain", "number"), "order_log": ("world_id", "seq")}

# Tables whose rows it refuses to change and to remove in any case: they say what was removed and sealed. With
# what SQLite's REPLACE would remove without asking a trigger.
_FOR_EVER = {
    "archive": "seq = NEW.seq AND NEW.seq > 0",
    "order_seal": "world_id = NEW.world_id AND number = NEW.number",
}


def upgrade() -> None:
    op.create_table(
        "ack",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("holder", AutoString(), nullable=False),
        sa.Column("kind", AutoString(), nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.Column("late", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "sequence", "holder"),
    )
    with op.batch_alter_table("ack", schema=None) as batch_op:
        batch_op.create_index("ack_at", ["at"], unique=False)
    op.create_table(
        "activation",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("etag", AutoString(), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("mode", AutoString(), server_default="", nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "strategy_id"),
    )
    with op.batch_alter_table("activation", schema=None) as batch_op:
        batch_op.create_index(
            "activation_trading",
            ["world_id"],
            unique=False,
            sqlite_where=sa.text("active AND mode IN ('paper', 'live')"),
            postgresql_where=sa.text("active AND mode IN ('paper', 'live')"),
        )

    op.create_table(
        "allocation",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("scales", sa.Text(), nullable=False),
        sa.Column("profits", sa.Text(), nullable=False),
        sa.Column("past", sa.Text(), nullable=False),
        sa.Column("updated_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id"),
    )
    op.create_table(
        "rebalancing_schedule",
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("set_by", AutoString(), nullable=False),
        sa.Column("token_id", AutoString(), nullable=False),
        sa.Column("issuers", sa.Text(), nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.Column("set_at", AutoString(), nullable=False),
        sa.Column("state", AutoString(), nullable=False),
        sa.Column("fired_at", AutoString(), nullable=False),
        sa.Column("firing", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "rebalancing",
        sa.Column("run_id", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("plan_etag", AutoString(), nullable=False),
        sa.Column("plan_hash", AutoString(), nullable=False),
        sa.Column("worlds", sa.Text(), nullable=False),
        sa.Column("title", AutoString(), nullable=False),
        sa.Column("requested_by", AutoString(), nullable=False),
        sa.Column("requested_issuers", sa.Text(), nullable=False),
        sa.Column("requested_at", AutoString(), nullable=False),
        sa.Column("state", AutoString(), nullable=False),
        sa.Column("outcome", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("approvals", sa.Integer(), nullable=False),
        sa.Column("roles", AutoString(), nullable=False),
        sa.Column("approve_within_s", sa.Float(), nullable=False),
        sa.Column("approve_until", AutoString(), nullable=False),
        sa.Column("secret", AutoString(), nullable=False),
        sa.Column("locked_at", AutoString(), nullable=False),
        sa.Column("deadline", AutoString(), nullable=False),
        sa.Column("aborted_by", AutoString(), nullable=False),
        sa.Column("abort_reason", AutoString(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("ended_at", AutoString(), nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("rebalancing_requested", "rebalancing", ["requested_at"])
    op.create_index(
        "rebalancing_running",
        "rebalancing",
        ["requested_at", "run_id"],
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "rebalancing_trade",
        sa.Column("run_id", AutoString(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("account", AutoString(), nullable=False),
        sa.Column("symbol", AutoString(), nullable=False),
        sa.Column("step", AutoString(), nullable=False),
        sa.Column("quantity", AutoString(), nullable=False),
        sa.Column("crossed", AutoString(), nullable=False),
        sa.Column("mark", AutoString(), nullable=False),
        sa.Column("price", AutoString(), nullable=False),
        sa.Column("time_in_force", AutoString(), nullable=False),
        sa.Column("reduce_only", sa.Boolean(), nullable=False),
        sa.Column("goal", AutoString(), nullable=False),
        sa.Column("follows", sa.Boolean(), nullable=False),
        sa.Column("order_id", AutoString(), nullable=False),
        sa.Column("state", AutoString(), nullable=False),
        sa.Column("filled", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_index(
        "rebalancing_trade_step", "rebalancing_trade", ["run_id", "step", "state", "world_id", "number"]
    )
    op.create_table(
        "apply",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("run_id", AutoString(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("requested_by", AutoString(), nullable=False),
        sa.Column("requested_issuers", sa.Text(), nullable=False),
        sa.Column("requested_at", AutoString(), nullable=False),
        sa.Column("state", AutoString(), nullable=False),
        sa.Column("outcome", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("snapshot", sa.Text(), nullable=False),
        sa.Column("epoch_before", sa.Integer(), nullable=False),
        sa.Column("epoch_after", sa.Integer(), nullable=False),
        sa.Column("aborted_by", AutoString(), nullable=False),
        sa.Column("abort_reason", AutoString(), nullable=False),
        sa.Column("ended_at", AutoString(), nullable=True),
        sa.PrimaryKeyConstraint("world_id", "run_id"),
    )
    with op.batch_alter_table("apply", schema=None) as batch_op:
        batch_op.create_index(
            "apply_running",
            ["world_id"],
            unique=True,
            sqlite_where=sa.text("ended_at IS NULL"),
            postgresql_where=sa.text("ended_at IS NULL"),
        )
        batch_op.create_index("apply_of", ["world_id", "seq"], unique=False)

    op.create_table(
        "apply_step",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("run_id", AutoString(), nullable=False),
        sa.Column("step", AutoString(), nullable=False),
        sa.Column("started_at", AutoString(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "run_id", "step"),
    )
    op.create_table(
        "approval",
        sa.Column("approval_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("about", AutoString(), nullable=False),
        sa.Column("subject", AutoString(), nullable=False),
        sa.Column("actor", AutoString(), nullable=False),
        sa.Column("verdict", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("via", AutoString(), nullable=False),
        sa.Column("counts", sa.Boolean(), nullable=False),
        sa.Column("plan_hash", AutoString(), nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.Column("read_at", AutoString(), nullable=True),
        sa.PrimaryKeyConstraint("approval_id"),
    )
    with op.batch_alter_table("approval", schema=None) as batch_op:
        batch_op.create_index("approval_of", ["world_id", "subject"], unique=False)
        batch_op.create_index(
            "approval_unread",
            ["world_id", "subject"],
            unique=False,
            sqlite_where=sa.text("read_at IS NULL"),
            postgresql_where=sa.text("read_at IS NULL"),
        )

    op.create_table(
        "archive",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("source", AutoString(), nullable=False),
        sa.Column("scope", AutoString(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("artifact", AutoString(), nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    with op.batch_alter_table("archive", schema=None) as batch_op:
        batch_op.create_index("archive_of", ["source", "scope", "last"], unique=False)

    op.create_table(
        "audit",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at", AutoString(), nullable=False),
        sa.Column("actor", AutoString(), nullable=False),
        sa.Column("action", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("subject", AutoString(), nullable=False),
        sa.Column("correlation_id", AutoString(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("chain", AutoString(), server_default="", nullable=False),
        sa.Column("number", sa.Integer(), server_default="0", nullable=False),
        sa.Column("hash", AutoString(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index("audit_chain", ["chain", "number"], unique=True)
        batch_op.create_index(
            "audit_promotion",
            ["chain", "correlation_id"],
            unique=False,
            sqlite_where=sa.text("substr(action, 1, 10) = 'promotion.'"),
            postgresql_where=sa.text("substr(action, 1, 10) = 'promotion.'"),
        )

    op.create_table(
        "audit_head",
        sa.Column("chain", AutoString(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("hash", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("chain"),
    )
    op.create_table(
        "binding",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("world_id", "strategy_id"),
    )
    op.create_table(
        "cache_hit",
        sa.Column("reporter", AutoString(), nullable=False),
        sa.Column("node_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("actor", AutoString(), nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("reporter", "node_id"),
    )
    op.create_table(
        "commit_log",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("idempotency_key", AutoString(), nullable=False),
        sa.Column("actor", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("body_hash", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("received_at", AutoString(), nullable=False),
        sa.Column("run_id", AutoString(), nullable=True),
        sa.Column("ack", sa.Text(), nullable=True),
        sa.Column("lease_id", AutoString(), server_default="", nullable=False),
        sa.Column("refused", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("idempotency_key"),
    )
    with op.batch_alter_table("commit_log", schema=None) as batch_op:
        batch_op.create_index(
            "commit_log_run",
            ["run_id"],
            unique=False,
            sqlite_where=sa.text("run_id IS NOT NULL"),
            postgresql_where=sa.text("run_id IS NOT NULL"),
        )
        batch_op.create_index(
            "commit_log_waiting",
            ["seq"],
            unique=False,
            sqlite_where=sa.text("run_id IS NULL AND refused IS NULL"),
            postgresql_where=sa.text("run_id IS NULL AND refused IS NULL"),
        )

    op.create_table(
        "dead_letter",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )

    op.create_table(
        "decision",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("policy_version", sa.Integer(), nullable=False),
        sa.Column("etag", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    with op.batch_alter_table("decision", schema=None) as batch_op:
        batch_op.create_index("decision_of", ["world_id", "seq"], unique=False)
        batch_op.create_index("decision_since", ["world_id", "created_at", "seq"], unique=False)

    op.create_table(
        "decision_inputs",
        sa.Column(
            "decision_seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("decision_seq"),
    )
    with op.batch_alter_table("decision_inputs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_decision_inputs_world_id"), ["world_id"], unique=False)

    op.create_table(
        "edge_override",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("src", AutoString(), nullable=False),
        sa.Column("dst", AutoString(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("updated_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "src", "dst"),
    )
    op.create_table(
        "evaluation_request",
        sa.Column("request_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("decision_seq", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_table(
        "evidence",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("run_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("kind", AutoString(), nullable=False),
        sa.Column("as_of", AutoString(), nullable=False),
        sa.Column("content_hash", AutoString(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=True),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("run_id"),
    )
    with op.batch_alter_table("evidence", schema=None) as batch_op:
        batch_op.create_index("evidence_of", ["world_id", "strategy_id", "kind", "as_of", "seq"], unique=False)
        batch_op.create_index(
            "evidence_content", ["world_id", "strategy_id", "content_hash", "seq"], unique=False
        )

    op.create_table(
        "fence",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("state", AutoString(), nullable=False),
        sa.Column("holder", AutoString(), nullable=False),
        sa.Column("halted", AutoString(), nullable=False),
        sa.Column("allow_live", sa.Boolean(), nullable=False),
        sa.Column("live_edge", sa.Boolean(), nullable=False),
        sa.Column("edge_closings", sa.Integer(), nullable=False),
        sa.Column("fresh_until", AutoString(), nullable=False),
        sa.Column("halt_epoch", sa.Integer(), nullable=False),
        sa.Column("on_halt", AutoString(), nullable=False),
        sa.Column("max_orders", sa.Integer(), nullable=True),
        sa.Column("max_refused", sa.Integer(), nullable=True),
        sa.Column("symbols", sa.Text(), nullable=False),
        sa.Column("max_quantity", AutoString(), nullable=False),
        sa.Column("max_notional", AutoString(), nullable=False),
        sa.Column("position_limits", sa.Text(), nullable=False),
        sa.Column("minute", AutoString(), nullable=False),
        sa.Column("orders", sa.Integer(), nullable=False),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.Column("rebalancing", AutoString(), nullable=False),
        sa.Column("activation_sequence", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("world_id"),
    )
    op.create_table(
        "gateway",
        sa.Column("gateway_id", AutoString(), nullable=False),
        sa.Column("started_at", AutoString(), nullable=False),
        sa.Column("expires_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("gateway_id"),
    )
    op.create_table(
        "graph_diff",
        sa.Column("run_id", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_table(
        "graph_edge",
        sa.Column("parent", AutoString(), nullable=False),
        sa.Column("child", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("parent", "child"),
    )
    with op.batch_alter_table("graph_edge", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_graph_edge_child"), ["child"], unique=False)

    op.create_table(
        "graph_node",
        sa.Column("node_id", AutoString(), nullable=False),
        sa.Column("node_type", AutoString(), nullable=False),
        sa.Column("interval_s", sa.Integer(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("schema_compat_id", AutoString(), nullable=False),
        sa.Column("schema_hash", AutoString(), nullable=False),
        sa.Column("code_hash", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("first_strategy", AutoString(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.Column("recompute_after", AutoString(), nullable=True),
        sa.PrimaryKeyConstraint("node_id"),
    )
    op.create_table(
        "graph_strategy",
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("dag", sa.Text(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("strategy_id"),
    )
    op.create_table(
        "hysteresis",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "strategy_id"),
    )
    op.create_table(
        "open_order",
        sa.Column("order_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("execution_domain", AutoString(), nullable=False),
        sa.Column("symbol", AutoString(), nullable=False),
        sa.Column("quantity", AutoString(), nullable=False),
        sa.Column("price", AutoString(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("accepted_at", AutoString(), nullable=False),
        sa.Column("next_at", AutoString(), nullable=False),
        sa.Column("state", AutoString(), nullable=False),
        sa.Column("sent_at", AutoString(), nullable=False),
        sa.Column("acknowledged", sa.Boolean(), nullable=False),
        sa.Column("filled_quantity", AutoString(), nullable=False),
        sa.Column("cancel_reason", AutoString(), nullable=False),
        sa.Column("origin", AutoString(), server_default="strategy", nullable=False),
        sa.PrimaryKeyConstraint("order_id"),
    )
    with op.batch_alter_table("open_order", schema=None) as batch_op:
        batch_op.create_index("open_order_due", ["execution_domain", "world_id", "next_at"], unique=False)
        batch_op.create_index("open_order_next", ["execution_domain", "next_at", "world_id"], unique=False)
        batch_op.create_index("open_order_world", ["world_id", "strategy_id", "symbol"], unique=False)

    op.create_table(
        "flatten",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("flatten_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("actor", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "flatten_id"),
    )
    op.create_table(
        "flattening",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("execution_domain", AutoString(), nullable=False),
        sa.Column("account", AutoString(), nullable=False),
        sa.Column("flatten_id", AutoString(), nullable=False),
        sa.Column("since", AutoString(), nullable=False),
        sa.Column("faults", sa.Text(), nullable=False),
        sa.Column("next_at", AutoString(), nullable=False),
        sa.Column("cancel_reason", AutoString(), nullable=False),
        sa.Column("ended_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "strategy_id", "execution_domain"),
    )
    op.create_table(
        "target",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("execution_domain", AutoString(), nullable=False),
        sa.Column("symbol", AutoString(), nullable=False),
        sa.Column("unit", AutoString(), nullable=False),
        sa.Column("value", AutoString(), nullable=False),
        sa.Column("weight", AutoString(), nullable=False),
        sa.Column("capital", AutoString(), nullable=False),
        sa.Column("price", AutoString(), nullable=False),
        sa.Column("units", AutoString(), nullable=False),
        sa.Column("decided_at", AutoString(), nullable=False),
        sa.Column("updated_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "strategy_id", "execution_domain", "symbol"),
    )
    op.create_table(
        "ledger",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("account", AutoString(), nullable=False),
        sa.Column("symbol", AutoString(), nullable=False),
        sa.Column("ref", AutoString(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    with op.batch_alter_table("ledger", schema=None) as batch_op:
        batch_op.create_index("ledger_once", ["world_id", "account", "ref"], unique=True)
        batch_op.create_index("ledger_world", ["world_id", "seq"], unique=False)
        batch_op.create_index("ledger_strategy", ["world_id", "strategy_id", "seq"], unique=False)
        batch_op.create_index(
            "ledger_position",
            ["world_id", "strategy_id", "account", "symbol", "at", "seq"],
            unique=False,
        )

    op.create_table(
        "position",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("account", AutoString(), nullable=False),
        sa.Column("symbol", AutoString(), nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.Column("marked_at", AutoString(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "strategy_id", "account", "symbol"),
    )
    with op.batch_alter_table("position", schema=None) as batch_op:
        batch_op.create_index(
            "position_held",
            ["world_id", "strategy_id", "account", "symbol"],
            unique=False,
            sqlite_where=sa.text("held"),
            postgresql_where=sa.text("held"),
        )
        batch_op.create_index(
            "position_account",
            ["account", "symbol", "world_id", "strategy_id"],
            unique=False,
            sqlite_where=sa.text("held"),
            postgresql_where=sa.text("held"),
        )
        batch_op.create_index(
            "position_mark", ["account", "symbol", "marked_at", "world_id", "strategy_id"], unique=False
        )

    op.create_table(
        "exposure",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("account", AutoString(), nullable=False),
        sa.Column("gross", AutoString(), nullable=False),
        sa.Column("profit", AutoString(), nullable=False),
        sa.Column("peak", AutoString(), nullable=False),
        sa.Column("net", AutoString(), nullable=False),
        sa.Column("fees", AutoString(), nullable=False),
        sa.Column("traded", AutoString(), nullable=False),
        sa.Column("day", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "strategy_id", "account"),
    )
    with op.batch_alter_table("exposure", schema=None) as batch_op:
        batch_op.create_index(
            "exposure_account",
            ["account"],
            unique=False,
            sqlite_where=sa.text("strategy_id = ''"),
            postgresql_where=sa.text("strategy_id = ''"),
        )

    op.create_table(
        "exposure_day",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("account", AutoString(), nullable=False),
        sa.Column("day", AutoString(), nullable=False),
        sa.Column("gross", AutoString(), nullable=False),
        sa.Column("net", AutoString(), nullable=False),
        sa.Column("profit", AutoString(), nullable=False),
        sa.Column("fees", AutoString(), nullable=False),
        sa.Column("traded", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "strategy_id", "account", "day"),
        sqlite_with_rowid=False,
    )

    op.create_table(
        "order_count",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("kind", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("orders", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "kind", "reason"),
    )
    op.create_table(
        "order_log",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("kind", AutoString(), nullable=False),
        sa.Column("ref", AutoString(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    with op.batch_alter_table("order_log", schema=None) as batch_op:
        batch_op.create_index(
            "order_log_ended",
            ["ref"],
            unique=True,
            sqlite_where=sa.text("kind IN ('filled', 'cancelled', 'rejected', 'expired')"),
            postgresql_where=sa.text("kind IN ('filled', 'cancelled', 'rejected', 'expired')"),
        )
        batch_op.create_index(
            "order_log_once",
            ["ref"],
            unique=True,
            sqlite_where=sa.text("kind IN ('accepted', 'refused', 'withheld')"),
            postgresql_where=sa.text("kind IN ('accepted', 'refused', 'withheld')"),
        )
        batch_op.create_index(
            "order_log_underway",
            ["ref"],
            unique=False,
            sqlite_where=sa.text("kind IN ('sent', 'partially_filled', 'fill')"),
            postgresql_where=sa.text("kind IN ('sent', 'partially_filled', 'fill')"),
        )
        batch_op.create_index("order_log_world", ["world_id", "seq"], unique=False)
        batch_op.create_index(
            "order_log_reason",
            ["world_id", "reason", "seq"],
            unique=False,
            sqlite_where=sa.text("kind IN ('refused', 'withheld')"),
            postgresql_where=sa.text("kind IN ('refused', 'withheld')"),
        )
        batch_op.create_index(
            "order_log_strategy",
            ["world_id", "strategy_id", "reason", "seq"],
            unique=False,
            sqlite_where=sa.text("kind IN ('accepted', 'refused', 'withheld')"),
            postgresql_where=sa.text("kind IN ('accepted', 'refused', 'withheld')"),
        )

    op.create_table(
        "order_seal",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("hash", AutoString(), nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "number"),
    )
    op.create_table(
        "outbox",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("event_id", AutoString(), nullable=False),
        sa.Column("type", AutoString(length=128), nullable=False),
        sa.Column("key", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), server_default="", nullable=False),
        sa.Column("subject", AutoString(length=1100), server_default="", nullable=False),
        sa.Column("subject_hash", AutoString(), server_default="", nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("published_at", AutoString(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("event_id"),
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.create_index("outbox_of_subject", ["key", "subject_hash", "type", "seq"], unique=False)
        batch_op.create_index(
            "outbox_waiting",
            ["seq"],
            unique=False,
            sqlite_where=sa.text("published_at IS NULL"),
            postgresql_where=sa.text("published_at IS NULL"),
        )

    op.create_table(
        "outcome",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("run_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("run_id"),
    )
    with op.batch_alter_table("outcome", schema=None) as batch_op:
        batch_op.create_index("outcome_of", ["world_id", "strategy_id", "seq"], unique=False)

    op.create_table(
        "policy",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "version"),
    )
    op.create_table(
        "principal",
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("created_by", AutoString(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.Column("disabled_by", AutoString(), nullable=False),
        sa.Column("disabled_at", AutoString(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "process",
        sa.Column("process_id", AutoString(), nullable=False),
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("host", AutoString(), nullable=False),
        sa.Column("state", AutoString(), nullable=False),
        sa.Column("fault", AutoString(), nullable=False),
        sa.Column("started_at", AutoString(), nullable=False),
        sa.Column("since", AutoString(), nullable=False),
        sa.Column("seen_at", AutoString(), nullable=False),
        sa.Column("worked_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("process_id"),
    )
    op.create_table(
        "queue",
        sa.Column("topic", AutoString(), nullable=False),
        sa.Column("node_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("execution_domain", AutoString(), nullable=False),
        sa.Column("kind", AutoString(), nullable=False),
        sa.Column("partitions", sa.Integer(), nullable=False),
        sa.Column("retention_days", sa.Integer(), nullable=False),
        sa.Column("replication", sa.Integer(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.Column("archived_at", AutoString(), nullable=True),
        sa.Column("archive", AutoString(), nullable=True),
        sa.Column("dropped_at", AutoString(), nullable=True),
        sa.PrimaryKeyConstraint("topic"),
        sa.UniqueConstraint("node_id", "world_id", "execution_domain"),
    )
    with op.batch_alter_table("queue", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_queue_node_id"), ["node_id"], unique=False)
        batch_op.create_index(
            "queue_kept",
            ["topic"],
            unique=False,
            sqlite_where=sa.text("dropped_at IS NULL"),
            postgresql_where=sa.text("dropped_at IS NULL"),
        )

    op.create_table(
        "queue_tag",
        sa.Column("topic", AutoString(), nullable=False),
        sa.Column("tag", AutoString(length=64), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("execution_domain", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "tag"),
    )
    with op.batch_alter_table("queue_tag", schema=None) as batch_op:
        batch_op.create_index("queue_tag_of", ["world_id", "execution_domain", "tag"], unique=False)

    op.create_table(
        "reconciliation",
        sa.Column("account", AutoString(), nullable=False),
        sa.Column("at", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("account"),
    )
    op.create_table(
        "run_context",
        sa.Column("run_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    with op.batch_alter_table("run_context", schema=None) as batch_op:
        batch_op.create_index("run_context_newest", ["strategy_id", "created_at"], unique=False)
        batch_op.create_index("run_context_of", ["world_id", "strategy_id", "created_at"], unique=False)

    op.create_table(
        "sentinel",
        sa.Column("sentinel_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("version", AutoString(), nullable=False),
        sa.Column("traffic_weight", sa.Float(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("sentinel_id"),
        sa.UniqueConstraint("world_id", "strategy_id"),
    )
    op.create_table(
        "rule_change",
        sa.Column("change_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("loosens", sa.Text(), nullable=False),
        sa.Column("rules", AutoString(), nullable=False),
        sa.Column("required", sa.Integer(), nullable=False),
        sa.Column("state", AutoString(), nullable=False),
        sa.Column("requested_by", AutoString(), nullable=False),
        sa.Column("requested_issuers", sa.Text(), nullable=False),
        sa.Column("requested_at", AutoString(), nullable=False),
        sa.Column("expires_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("change_id"),
    )
    with op.batch_alter_table("rule_change", schema=None) as batch_op:
        batch_op.create_index("rule_change_of", ["world_id", "requested_at"], unique=False)
        batch_op.create_index("rule_change_state", ["world_id", "state"], unique=False)

    op.create_table(
        "session",
        sa.Column("session_id", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("actor", AutoString(), nullable=False),
        sa.Column("secret_hash", AutoString(), nullable=False),
        sa.Column("runner", AutoString(), nullable=False),
        sa.Column("host", AutoString(), nullable=False),
        sa.Column("execution_domain", AutoString(), nullable=False),
        sa.Column("opened_at", AutoString(), nullable=False),
        sa.Column("expires_at", AutoString(), nullable=False),
        sa.Column("ended_at", AutoString(), nullable=True),
        sa.Column("end_reason", AutoString(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("newest_bar", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("session_id"),
    )
    with op.batch_alter_table("session", schema=None) as batch_op:
        batch_op.create_index("session_of", ["world_id", "opened_at"], unique=False)
        batch_op.create_index("session_opened", ["opened_at"], unique=False)
        batch_op.create_index(
            "session_ended", ["strategy_id", "world_id", "execution_domain", "ended_at"], unique=False
        )
        batch_op.create_index(
            "session_old",
            ["ended_at"],
            unique=False,
            sqlite_where=sa.text("ended_at IS NOT NULL"),
            postgresql_where=sa.text("ended_at IS NOT NULL"),
        )
        batch_op.create_index(
            "session_newest_bar", ["strategy_id", "world_id", "newest_bar"], unique=False
        )
        for index, columns in (
            ("session_expiring", ["expires_at"]),
            ("session_open", ["world_id", "opened_at"]),
            ("session_open_newest", ["opened_at"]),
        ):
            batch_op.create_index(
                index,
                columns,
                unique=False,
                sqlite_where=sa.text("ended_at IS NULL"),
                postgresql_where=sa.text("ended_at IS NULL"),
            )

    op.create_table(
        "store_identity",
        sa.Column("store_id", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("store_id"),
    )
    op.create_table(
        "strategy_halt",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("strategy_id", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("since", AutoString(), nullable=False),
        sa.Column("halted_by", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "strategy_id"),
    )
    op.create_table(
        "tag_query",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("execution_domain", AutoString(), nullable=False),
        sa.Column("node_id", AutoString(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("interval_s", sa.Integer(), nullable=False),
        sa.Column("match_mode", AutoString(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "execution_domain", "node_id"),
    )
    op.create_table(
        "token",
        sa.Column("token_id", AutoString(), nullable=False),
        sa.Column("subject", AutoString(), nullable=False),
        sa.Column("grants", sa.Text(), nullable=False),
        sa.Column("created_by", AutoString(), nullable=False),
        sa.Column("issuers", sa.Text(), nullable=False),
        sa.Column("parent_id", AutoString(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.Column("expires_at", AutoString(), nullable=False),
        sa.Column("revoked_at", AutoString(), nullable=True),
        sa.PrimaryKeyConstraint("token_id"),
    )
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.create_index("token_of", ["subject", "expires_at"], unique=False)
        batch_op.create_index("token_listed", ["created_at", "token_id"], unique=False)
        batch_op.create_index(
            "token_revoked",
            ["expires_at"],
            unique=False,
            sqlite_where=sa.text("revoked_at IS NOT NULL"),
            postgresql_where=sa.text("revoked_at IS NOT NULL"),
        )

    op.create_table(
        "validation",
        sa.Column("eval_key", AutoString(), nullable=False),
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("node_id", AutoString(), nullable=False),
        sa.Column("execution_domain", AutoString(), nullable=False),
        sa.Column("result", AutoString(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("eval_key"),
    )
    with op.batch_alter_table("validation", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_validation_world_id"), ["world_id"], unique=False)
        batch_op.create_index("validation_at", ["created_at"], unique=False)

    op.create_table(
        "world",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("etag", AutoString(), nullable=False),
        sa.Column("created_at", AutoString(), nullable=False),
        sa.Column("policy_version", sa.Integer(), nullable=True),
        sa.Column("pinned_fingerprint", AutoString(), server_default="", nullable=False),
        sa.Column("state", AutoString(), server_default="active", nullable=False),
        sa.PrimaryKeyConstraint("world_id"),
    )
    op.create_table(
        "world_node",
        sa.Column("world_id", AutoString(), nullable=False),
        sa.Column("node_id", AutoString(), nullable=False),
        sa.Column("execution_domain", AutoString(), nullable=False),
        sa.Column("state", AutoString(), nullable=False),
        sa.Column("eval_key", AutoString(), nullable=False),
        sa.Column("updated_at", AutoString(), nullable=False),
        sa.PrimaryKeyConstraint("world_id", "node_id", "execution_domain"),
    )

    if op.get_bind().dialect.name == "postgresql":
        _append_only_in_postgres()
    else:
        _append_only_in_sqlite()


def _append_only_in_postgres() -> None:
    connection = op.get_bind()
    schema = connection.dialect.identifier_preparer.quote(
        connection.execute(sa.text("SELECT current_schema()")).scalar_one()
    )
    # Whoever deletes may have set another path of schemas, or have a temporary table `archive`.
    language = f"LANGUAGE plpgsql SET search_path = {schema}, pg_temp"
    op.execute(
        "CREATE FUNCTION qmtl_append_only() RETURNS trigger AS "
        f"$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$ {language}"
    )
    for table in _FOR_EVER:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION qmtl_append_only()"
        )
    for table, (scope, number) in _APPEND_ONLY.items():
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION qmtl_append_only()"
        )
        op.execute(
            f"CREATE FUNCTION qmtl_{table}_archived() RETURNS trigger AS $$ BEGIN "
            f"IF {_not_archived(table, scope, number)} "
            f"THEN RAISE EXCEPTION '{table} is append-only'; END IF; RETURN OLD; END $$ {language}"
        )
        op.execute(
            f"CREATE TRIGGER {table}_archived BEFORE DELETE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION qmtl_{table}_archived()"
        )


def _append_only_in_sqlite() -> None:
    for table in (*_APPEND_ONLY, *_FOR_EVER):
        refused = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        op.execute(f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refused}")
        allowed = f"WHEN {_not_archived(table, *_APPEND_ONLY[table])} " if table in _APPEND_ONLY else ""
        op.execute(f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {allowed}{refused}")
    for table, same in _FOR_EVER.items():
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) BEGIN SELECT RAISE(IGNORE); END"
        )


def _not_archived(table: str, scope: str, number: str) -> str:
    """Write the condition that no archive names the row."""
    return (
        f"NOT EXISTS (SELECT 1 FROM archive WHERE source = '{table}' AND scope = OLD.{scope} "
        f"AND last >= OLD.{number} AND first <= OLD.{number})"
    )
