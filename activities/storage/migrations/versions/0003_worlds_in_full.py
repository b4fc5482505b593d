"""worlds in full"""

import sqlalchemy as sa
import sqlmodel
from alembic import op

from activities.storage.chain import LINKED, link

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('ack',
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('sequence', sa.Integer(), nullable=False),
    sa.Column('holder', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('kind', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('late', sa.Boolean(), nullable=False),
    sa.PrimaryKeyConstraint('world_id', 'sequence', 'holder')
    )
    op.create_table('apply',
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('run_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('seq', sa.Integer(), nullable=False),
    sa.Column('body', sa.Text(), nullable=False),
    sa.Column('plan', sa.Text(), nullable=False),
    sa.Column('requested_by', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('requested_at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('state', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('outcome', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('reason', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('snapshot', sa.Text(), nullable=False),
    sa.Column('epoch_before', sa.Integer(), nullable=False),
    sa.Column('epoch_after', sa.Integer(), nullable=False),
    sa.Column('ended_at', sqlmodel.sql.sqltypes.AutoString(), nullable=True),
    sa.PrimaryKeyConstraint('world_id', 'run_id')
    )
    with op.batch_alter_table('apply', schema=None) as batch_op:
        batch_op.create_index('apply_running', ['world_id'], unique=True, sqlite_where=sa.text('ended_at IS NULL'), postgresql_where=sa.text('ended_at IS NULL'))

    op.create_table('apply_step',
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('run_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('step', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('started_at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('ended_at', sqlmodel.sql.sqltypes.AutoString(), nullable=True),
    sa.Column('answer', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('world_id', 'run_id', 'step')
    )
    op.create_table('approval',
    sa.Column('approval_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('subject', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('actor', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('verdict', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('reason', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('via', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('counts', sa.Boolean(), nullable=False),
    sa.Column('at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('taken_at', sqlmodel.sql.sqltypes.AutoString(), nullable=True),
    sa.PrimaryKeyConstraint('approval_id')
    )
    with op.batch_alter_table('approval', schema=None) as batch_op:
        batch_op.create_index('approval_of', ['world_id', 'subject'], unique=False)

    op.create_table('audit_head',
    sa.Column('chain', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('hash', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.PrimaryKeyConstraint('chain')
    )
    op.create_table('edge_override',
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('src', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('dst', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('active', sa.Boolean(), nullable=False),
    sa.Column('reason', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('updated_at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.PrimaryKeyConstraint('world_id', 'src', 'dst')
    )
    op.create_table('fence',
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('epoch', sa.Integer(), nullable=False),
    sa.Column('state', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('holder', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('halted', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('allow_live', sa.Boolean(), nullable=False),
    sa.Column('live_edge', sa.Boolean(), nullable=False),
    sa.Column('fresh_until', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('max_orders', sa.Integer(), nullable=True),
    sa.Column('max_refused', sa.Integer(), nullable=True),
    sa.Column('minute', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('orders', sa.Integer(), nullable=False),
    sa.Column('refused', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('world_id')
    )
    op.create_table('gateway',
    sa.Column('gateway_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('expires_at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.PrimaryKeyConstraint('gateway_id')
    )
    op.create_table('judged',
    sa.Column('decision_seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=False, nullable=False),
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('body', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('decision_seq')
    )
    with op.batch_alter_table('judged', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_judged_world_id'), ['world_id'], unique=False)

    op.create_table('open_order',
    sa.Column('order_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('accepted_at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.PrimaryKeyConstraint('order_id')
    )
    with op.batch_alter_table('open_order', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_open_order_accepted_at'), ['accepted_at'], unique=False)
        batch_op.create_index(batch_op.f('ix_open_order_world_id'), ['world_id'], unique=False)

    op.create_table('order_log',
    sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('kind', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('ref', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('epoch', sa.Integer(), nullable=False),
    sa.Column('strategy_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('reason', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('body', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('seq')
    )
    with op.batch_alter_table('order_log', schema=None) as batch_op:
        batch_op.create_index('order_log_ended', ['ref'], unique=True, sqlite_where=sa.text("kind IN ('filled', 'cancelled')"), postgresql_where=sa.text("kind IN ('filled', 'cancelled')"))
        batch_op.create_index('order_log_once', ['ref'], unique=True, sqlite_where=sa.text("kind IN ('accepted', 'refused')"), postgresql_where=sa.text("kind IN ('accepted', 'refused')"))
        batch_op.create_index('order_log_world', ['world_id', 'seq'], unique=False)

    op.create_table('standing',
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('strategy_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('body', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('world_id', 'strategy_id')
    )
    op.create_table('validation',
    sa.Column('eval_key', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('node_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('execution_domain', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('result', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('body', sa.Text(), nullable=False),
    sa.Column('created_at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.PrimaryKeyConstraint('eval_key')
    )
    with op.batch_alter_table('validation', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_validation_world_id'), ['world_id'], unique=False)

    op.create_table('world_node',
    sa.Column('world_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('node_id', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('execution_domain', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('state', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('eval_key', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.Column('updated_at', sqlmodel.sql.sqltypes.AutoString(), nullable=False),
    sa.PrimaryKeyConstraint('world_id', 'node_id', 'execution_domain')
    )
    with op.batch_alter_table('activation', schema=None) as batch_op:
        batch_op.add_column(sa.Column('active', sa.Boolean(), server_default=sa.text('(false)'), nullable=False))
        batch_op.add_column(sa.Column('mode', sqlmodel.sql.sqltypes.AutoString(), server_default='', nullable=False))

    with op.batch_alter_table('audit', schema=None) as batch_op:
        batch_op.add_column(sa.Column('chain', sqlmodel.sql.sqltypes.AutoString(), server_default='', nullable=False))
        batch_op.add_column(sa.Column('number', sa.Integer(), server_default='0', nullable=False))
        batch_op.add_column(sa.Column('hash', sqlmodel.sql.sqltypes.AutoString(), server_default='', nullable=False))
        batch_op.create_index('audit_chain', ['chain', 'number'], unique=False)

    with op.batch_alter_table('world', schema=None) as batch_op:
        batch_op.add_column(sa.Column('pinned_fingerprint', sqlmodel.sql.sqltypes.AutoString(), server_default='', nullable=False))
        batch_op.add_column(sa.Column('state', sqlmodel.sql.sqltypes.AutoString(), server_default='active', nullable=False))

    _fences()
    _chains()
    _append_only()


def _fences() -> None:
    """What an earlier version knew of its worlds, as the fence reads it. Decisions of before count as stale: the next judgment makes them fresh."""
    postgres = op.get_bind().dialect.name == 'postgresql'
    live = "(spec::json->>'allow_live')::boolean" if postgres else "coalesce(json_extract(spec, '$.allow_live'), 0)"
    op.execute("INSERT INTO fence (world_id, epoch, state, holder, halted, allow_live, live_edge, fresh_until, minute, orders, refused) "
               f"SELECT world_id, 1, 'open', '', '', coalesce({live}, false), false, '', '', 0, 0 FROM world")
    active = "(body::json->>'active')::boolean" if postgres else "coalesce(json_extract(body, '$.active'), 0)"
    mode = "body::json->>'effective_mode'" if postgres else "json_extract(body, '$.effective_mode')"
    op.execute(f"UPDATE activation SET active = {active}, mode = coalesce({mode}, '')")


def _chains() -> None:
    """Chain the audit rows that are there."""
    connection = op.get_bind()
    heads: dict[str, tuple[int, str]] = {}
    rows = connection.execute(sa.text("SELECT seq, at, actor, action, world_id, subject, correlation_id, before, after FROM audit ORDER BY seq")).mappings().all()
    for row in rows:
        chain = row['world_id'] or row['subject']
        number, before = heads.get(chain, (0, ''))
        found = link(before, {**{name: row[name] for name in LINKED if name not in ('chain', 'number')}, 'chain': chain, 'number': number + 1})
        connection.execute(sa.text("UPDATE audit SET chain = :chain, number = :number, hash = :hash WHERE seq = :seq"), {'chain': chain, 'number': number + 1, 'hash': found, 'seq': row['seq']})
        heads[chain] = (number + 1, found)
    for chain, (number, found) in heads.items():
        connection.execute(sa.text("INSERT INTO audit_head (chain, number, hash) VALUES (:chain, :number, :hash)"), {'chain': chain, 'number': number, 'hash': found})


def _append_only() -> None:
    """From here on the database itself refuses to change or remove what was recorded."""
    if op.get_bind().dialect.name == 'postgresql':
        op.execute("CREATE FUNCTION qmtl_append_only() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$ LANGUAGE plpgsql")
        for table in ('audit', 'order_log'):
            op.execute(f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION qmtl_append_only()")
    else:
        for table in ('audit', 'order_log'):
            for change in ('UPDATE', 'DELETE'):
                op.execute(f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END")
