"""Which rows retention archives: a rule for each kind of record, with the tables that go with it.

What is in force is kept however old it is. So a decision, or the evidence of a run, may go only when what
replaced it is itself older than the limit: until then somebody may ask what was in force, and why.
"""

from sqlalchemy import ColumnElement, Select, Table, and_, exists, func, literal, or_, select, tuple_
from sqlalchemy.sql.selectable import FromClause

from activities.fence import segments
from activities.retention.ages import Ages
from activities.retention.rule import Part, Rule
from activities.retention.tokens import REVOKED_TOKENS
from activities.storage.tables import (
    ApplyRow,
    ApplyStepRow,
    ApprovalRow,
    CacheHitRow,
    CommitLogRow,
    DeadLetterRow,
    DecisionInputsRow,
    DecisionRow,
    DiffRow,
    EvaluationRequestRow,
    EvidenceRow,
    OutboxRow,
    OutcomeRow,
    RebalancingRow,
    RebalancingTradeRow,
    RuleChangeRow,
    RunContextRow,
    SessionRow,
    ValidationRow,
    WorldNodeRow,
)
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.rebalance_runs import ALL_WORLDS

_ack = segments.ACKNOWLEDGEMENTS
_apply = table_of(ApplyRow)
_step = table_of(ApplyStepRow)
_approval = table_of(ApprovalRow)
_change = table_of(RuleChangeRow)
_run = table_of(RebalancingRow)
_trade = table_of(RebalancingTradeRow)
_decision = table_of(DecisionRow)
_inputs = table_of(DecisionInputsRow)
_answered = table_of(EvaluationRequestRow)
_evidence = table_of(EvidenceRow)
_outcome = table_of(OutcomeRow)
_context = table_of(RunContextRow)
_commit = table_of(CommitLogRow)
_diff = table_of(DiffRow)
_hit = table_of(CacheHitRow)
_session = table_of(SessionRow)
_outbox = table_of(OutboxRow)
_dead = table_of(DeadLetterRow)
_validation = table_of(ValidationRow)
_world_node = table_of(WorldNodeRow)


def _before_the_first_young(table: Table, time: str, ages: Ages) -> ColumnElement[bool]:
    """Select rows before the first one that is younger: `seq` grows with time, so no index is needed.

    The newest row of the table stays, whatever its age: SQLite would give its number again.
    """
    other = table.alias()
    is_young = (other.c[time] >= ages.cutoff, other.c[time] <= ages.latest)
    young = select(other.c.seq).where(*is_young).order_by(other.c.seq).limit(1)
    newest = select(func.max(other.c.seq))
    first = func.coalesce(young.scalar_subquery(), newest.scalar_subquery())
    return and_(table.c.seq < first, table.c[time] < ages.cutoff)


def _replaced(
    table: FromClause, ages: Ages, *same: str, order: tuple[str, ...] = ("seq",)
) -> ColumnElement[bool]:
    """Select rows that another with the `same` values, stored before the cutoff, follows in the `order`."""
    later = table.alias()
    alike = (later.c[name] == table.c[name] for name in same)
    after = tuple_(*(later.c[name] for name in order)) > tuple_(*(table.c[name] for name in order))
    return exists().where(*alike, after, later.c.created_at < ages.cutoff)


def _decisions(ages: Ages) -> "Select[tuple[object, ...]]":
    return (
        select(_decision.c.seq, _decision.c.created_at.label("at"))
        .where(
            _before_the_first_young(_decision, "created_at", ages),
            _replaced(_decision, ages, "world_id"),
        )
        .order_by(_decision.c.seq)
    )


def _runs(ages: Ages) -> "Select[tuple[object, ...]]":
    evidence = _evidence.alias()
    in_force = exists().where(
        evidence.c.run_id == _outcome.c.run_id,
        ~_replaced(evidence, ages, "world_id", "strategy_id", "kind", order=("as_of", "seq")),
    )
    return (
        select(_outcome.c.run_id, _outcome.c.created_at.label("at"))
        .where(
            _before_the_first_young(_outcome, "created_at", ages),
            _replaced(_outcome, ages, "world_id", "strategy_id"),
            ~in_force,
        )
        .order_by(_outcome.c.seq)
    )


def _refusals(ages: Ages) -> "Select[tuple[object, ...]]":
    return (
        select(_commit.c.seq, _commit.c.received_at.label("at"))
        .where(
            _before_the_first_young(_commit, "received_at", ages),
            _commit.c.refused.is_not(None),
            _commit.c.run_id.is_(None),
        )
        .order_by(_commit.c.seq)
    )


def _validations(ages: Ages) -> "Select[tuple[object, ...]]":
    newest = exists().where(
        _world_node.c.world_id == _validation.c.world_id,
        _world_node.c.node_id == _validation.c.node_id,
        _world_node.c.execution_domain == _validation.c.execution_domain,
        _world_node.c.eval_key == _validation.c.eval_key,
    )
    return (
        select(_validation.c.eval_key, _validation.c.created_at.label("at"))
        .where(_validation.c.created_at < ages.cutoff, ~newest)
        .order_by(_validation.c.created_at)
    )


def _sessions(ages: Ages) -> "Select[tuple[object, ...]]":
    later = _session.alias()
    # The newest bar of a strategy is measured by, whoever ran it, and however long ago.
    replaced = exists().where(
        later.c.strategy_id == _session.c.strategy_id,
        later.c.world_id == _session.c.world_id,
        later.c.session_id != _session.c.session_id,
        later.c.newest_bar >= _session.c.newest_bar,
        or_(later.c.newest_bar > _session.c.newest_bar, later.c.session_id > _session.c.session_id),
    )
    return (
        select(_session.c.session_id, _session.c.ended_at.label("at"))
        .where(_session.c.ended_at < ages.cutoff, replaced)
        .order_by(_session.c.ended_at)
    )


def _applies(ages: Ages) -> "Select[tuple[object, ...]]":
    later = _apply.alias()
    newest = ~exists().where(later.c.world_id == _apply.c.world_id, later.c.seq > _apply.c.seq)
    return (
        select(_apply.c.world_id, _apply.c.run_id, _apply.c.ended_at.label("at"))
        .where(_apply.c.ended_at < ages.cutoff, ~newest)
        .order_by(_apply.c.ended_at)
    )


def _rebalancings(ages: Ages) -> "Select[tuple[object, ...]]":
    return (
        select(_run.c.run_id, literal(ALL_WORLDS), _run.c.ended_at.label("at"))
        .where(_run.c.ended_at < ages.cutoff)
        .order_by(_run.c.ended_at)
    )


def _rule_changes(ages: Ages) -> "Select[tuple[object, ...]]":
    return (
        select(_change.c.world_id, _change.c.change_id, _change.c.expires_at.label("at"))
        .where(_change.c.expires_at < ages.cutoff)
        .order_by(_change.c.expires_at)
    )


def _acks(ages: Ages) -> "Select[tuple[object, ...]]":
    return (
        select(_ack.c.world_id, _ack.c.sequence, _ack.c.holder, _ack.c.at)
        .where(_ack.c.at < ages.cutoff)
        .order_by(_ack.c.at)
    )


def _events(ages: Ages) -> "Select[tuple[object, ...]]":
    # Who retries a dead letter asks whether a later event of its subject was published.
    letter = _outbox.alias()
    after_a_dead_letter = exists().where(
        _dead.c.seq <= _outbox.c.seq,
        letter.c.seq == _dead.c.seq,
        letter.c.key == _outbox.c.key,
        letter.c.subject == _outbox.c.subject,
    )
    return (
        select(_outbox.c.seq, _outbox.c.at)
        .where(
            _before_the_first_young(_outbox, "at", ages),
            _outbox.c.published_at.is_not(None),
            ~after_a_dead_letter,
        )
        .order_by(_outbox.c.seq)
    )


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "decisions",
            lambda kept: kept.decisions_days,
            _decisions,
            (
                Part(_decision, ("seq",)),
                Part(_inputs, ("decision_seq",)),
                Part(_answered, ("decision_seq",)),
            ),
        ),
        Rule(
            "submissions",
            lambda kept: kept.submissions_days,
            _runs,
            (
                *(Part(table, ("run_id",)) for table in (_outcome, _evidence, _context, _diff, _commit)),
                Part(_hit, ("reporter",)),
            ),
        ),
        Rule(
            "refused submissions", lambda kept: kept.submissions_days, _refusals, (Part(_commit, ("seq",)),)
        ),
        Rule(
            "validations",
            lambda kept: kept.submissions_days,
            _validations,
            (Part(_validation, ("eval_key",)),),
        ),
        Rule(
            "sessions",
            lambda kept: kept.sessions_days,
            _sessions,
            (Part(_session, ("session_id",)), Part(_hit, ("reporter",))),
        ),
        Rule(
            "applies",
            lambda kept: kept.applies_days,
            _applies,
            (
                Part(_apply, ("world_id", "run_id")),
                Part(_step, ("world_id", "run_id")),
                Part(_approval, ("world_id", "subject")),
            ),
        ),
        Rule(
            "rebalancings",
            lambda kept: kept.applies_days,
            _rebalancings,
            (
                *(Part(table, ("run_id",)) for table in (_run, _trade)),
                Part(_approval, ("subject", "world_id")),
            ),
        ),
        Rule(
            "rule changes",
            lambda kept: kept.applies_days,
            _rule_changes,
            (Part(_change, ("world_id", "change_id")), Part(_approval, ("world_id", "subject"))),
        ),
        Rule(
            "acknowledgements",
            lambda kept: kept.applies_days,
            _acks,
            (Part(_ack, ("world_id", "sequence", "holder")),),
        ),
        Rule("events", lambda kept: kept.events_days, _events, (Part(_outbox, ("seq",)),)),
        REVOKED_TOKENS,
    )
}
"""The rules of tables without a chain, by name."""
