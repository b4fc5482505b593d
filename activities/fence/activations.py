"""Activations: which strategies of a world may trade, in which stage and with which weight."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from activities.storage.tables import ActivationRow, BindingRow, FenceRow, StrategyHaltRow
from activities.storage.transactions import ChangeRows, RecordedChange, Transaction, change_rows, table_of
from qmtl_sdk.contracts.applies import StrategyHalt
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.decisions import WHOLE_WORLD, ActivationEnvelope, DecisionEnvelope, StrategyDecision
from qmtl_sdk.contracts.domains import rank_of
from qmtl_sdk.contracts.topic_state import RunningHash, combined_hash, entry_hash

_ACTIVATION = table_of(ActivationRow)
_BODIES = (
    select(_ACTIVATION.c.body)
    .where(_ACTIVATION.c.world_id == bindparam("world"))
    .order_by(_ACTIVATION.c.strategy_id)
)


def stage_after(
    decision: StrategyDecision, envelope: DecisionEnvelope, before: ActivationEnvelope | None
) -> tuple[str, float]:
    """Return the mode and weight that a decision gives a strategy without an apply.

    A decision may switch a strategy off at once, and on up to `judged_mode`, where nothing stops it there
    (`StrategyDecision.stays`, the campaign in backtest). A strategy that an apply promoted further keeps its
    stage and weight until another apply.
    """
    if not decision.active:
        return "validate", 0.0
    stage = rank_of(before.effective_mode) if before is not None and before.active else -1
    judged = rank_of(envelope.judged_mode)
    if before is not None and stage > judged:
        return before.effective_mode or "validate", before.weight
    if stage < judged and (decision.stays or not _has_spent_its_campaign(envelope, before)):
        return "validate", decision.weight
    return envelope.judged_mode, decision.weight


def _has_spent_its_campaign(envelope: DecisionEnvelope, before: ActivationEnvelope | None) -> bool:
    since = before.stage_since if before is not None and before.active else None
    spent_s = (envelope.decided_at - since).total_seconds() if since else 0.0
    return spent_s >= envelope.backtest_campaign


def activation_of(
    decision: StrategyDecision, envelope: DecisionEnvelope, run_id: str, etag: str, mode: str, weight: float
) -> ActivationEnvelope:
    """Build the activation that a decision calls for. It gets its sequence when it is stored."""
    return ActivationEnvelope(
        world_id=envelope.world_id,
        strategy_id=decision.strategy_id,
        side=decision.side,
        active=decision.active,
        weight=weight,
        effective_mode=mode,
        dataset_fingerprint=decision.dataset_fingerprint if decision.active else "",
        etag=etag,
        run_id=run_id,
        ts=envelope.decided_at,
    )


def activation_hashes(session: Session, world_id: str) -> dict[str, str]:
    """Hash each activation of a world, including that of the whole world. Returns hashes by strategy_id."""
    return entry_hashes(stored_activations(session, world_id).values())


def stored_activations(session: Session, world_id: str) -> dict[str, ActivationEnvelope]:
    """Read each activation of a world by strategy_id, in that order, including that of the whole world."""
    bodies = session.connection().execute(_BODIES, {"world": world_id}).scalars()
    found = (ActivationEnvelope.model_validate_json(body) for body in bodies)
    return {item.strategy_id: item for item in found}


def strategy_activations(stored: Mapping[str, ActivationEnvelope]) -> list[ActivationEnvelope]:
    """Return the activations of strategies, without that of the whole world."""
    return [item for item in stored.values() if item.strategy_id != WHOLE_WORLD]


def entry_hashes(activations: Iterable[ActivationEnvelope]) -> dict[str, str]:
    """Hash each of these activations. Returns hashes by strategy_id."""
    return {item.strategy_id: entry_hash(item.json_dict()) for item in activations}


def store_activation(tx: Transaction, envelope: ActivationEnvelope, entries: dict[str, str]) -> str:
    """Store an activation and update `entries`. Returns the hash over all activations of the world."""
    entries[envelope.strategy_id] = entry_hash(envelope.json_dict())
    found = combined_hash(entries)
    tx.upsert(_row(envelope.model_copy(update={"state_hash": found})))
    return found


def _row(envelope: ActivationEnvelope) -> ActivationRow:
    return ActivationRow(
        world_id=envelope.world_id,
        strategy_id=envelope.strategy_id,
        etag=envelope.etag,
        active=envelope.active,
        mode=envelope.effective_mode or "",
        body=envelope.model_dump_json(),
    )


def activations_of(
    session: Session, world_id: str, strategy_id: str | None = None
) -> list[ActivationEnvelope]:
    """List the activations of a world's strategies, or of one; without that of the whole world."""
    query = (
        select(ActivationRow)
        .where(ActivationRow.world_id == world_id, ActivationRow.strategy_id != WHOLE_WORLD)
        .order_by(col(ActivationRow.strategy_id))
    )
    if strategy_id is not None:
        query = query.where(ActivationRow.strategy_id == strategy_id)
    return [ActivationEnvelope.model_validate_json(row.body) for row in session.exec(query)]


def halts_of(session: Session, world_id: str) -> list[StrategyHalt]:
    """List the halted strategies of a world, the earliest halt first."""
    query = (
        select(StrategyHaltRow, BindingRow.name)
        .where(StrategyHaltRow.world_id == world_id)
        .join(
            BindingRow,
            (col(BindingRow.world_id) == StrategyHaltRow.world_id)
            & (col(BindingRow.strategy_id) == StrategyHaltRow.strategy_id),
        )
        .order_by(col(StrategyHaltRow.since))
    )
    return [
        StrategyHalt.model_validate({**row.model_dump(exclude={"world_id"}), "name": name})
        for row, name in session.exec(query)
    ]


@dataclass(frozen=True)
class PreparedActivations:
    """Changes of activations, ready to be stored: `rows`, and the audit and outbox row of each.

    They follow the world's `sequence` in its `epoch`: after another change they must be prepared again.
    `entries` are the hashes of all activations after them, where there are changes.
    """

    sequence: int
    epoch: int
    rows: Sequence[ActivationRow]
    records: Sequence[ChangeRows]
    entries: Mapping[str, str]

    def follow(self, fence: FenceRow) -> bool:
        """Return whether nothing has changed since."""
        return (self.sequence, self.epoch) == (fence.activation_sequence, fence.epoch)


def activation_sequence(session: Session, world_id: str) -> int:
    """Read the number of a world's newest change of an activation. The world exists."""
    return session.exec(select(FenceRow.activation_sequence).where(FenceRow.world_id == world_id)).one()


def decided_activations(session: Session, envelope: DecisionEnvelope, run_id: str) -> PreparedActivations:
    """Prepare the activations that a decision changes without an apply."""
    # What changes while this is read has a later sequence.
    query = select(FenceRow.activation_sequence, FenceRow.epoch)
    sequence, epoch = session.exec(query.where(FenceRow.world_id == envelope.world_id)).one()
    return _decided(sequence, epoch, envelope, run_id, stored_activations(session, envelope.world_id))


def _decided(
    sequence: int,
    epoch: int,
    envelope: DecisionEnvelope,
    run_id: str,
    stored: Mapping[str, ActivationEnvelope],
) -> PreparedActivations:
    changed: list[ActivationEnvelope] = []
    for decision in envelope.strategies:
        before = stored.get(decision.strategy_id)
        mode, weight = stage_after(decision, envelope, before)
        etag = activation_etag(envelope.world_id, decision.strategy_id, decision.active, weight, mode)
        if before is None or before.etag != etag:
            changed.append(activation_of(decision, envelope, run_id, etag, mode, weight))
    return _prepared(sequence, epoch, changed, stored)


def apply_decision(
    tx: Transaction,
    fence: FenceRow,
    envelope: DecisionEnvelope,
    run_id: str,
    prepared: PreparedActivations | None = None,
) -> Mapping[str, str]:
    """Change the activations that a decision changes without an apply. The caller holds the fence.

    What was `prepared` before may be outdated: a halt in between changes an activation. Returns the hashes of
    all activations by strategy_id; none where `prepared` held nothing to change.
    """
    if prepared is not None and prepared.follow(fence):
        _store(tx, fence, prepared)
        return prepared.entries
    stored = stored_activations(tx.session, fence.world_id)
    prepared = _decided(fence.activation_sequence, fence.epoch, envelope, run_id, stored)
    _store(tx, fence, prepared)
    return prepared.entries or entry_hashes(stored.values())


def change_activations(
    tx: Transaction,
    fence: FenceRow,
    changed: Sequence[ActivationEnvelope],
    stored: Mapping[str, ActivationEnvelope],
) -> None:
    """Store strategies' activations under the world's next sequences; audit and publish each.

    A strategy that is halted stays so. `stored` are all activations of the world before
    (`stored_activations`).
    """
    _store(tx, fence, _prepared(fence.activation_sequence, fence.epoch, changed, stored))


def _prepared(
    sequence: int,
    epoch: int,
    changed: Sequence[ActivationEnvelope],
    stored: Mapping[str, ActivationEnvelope],
) -> PreparedActivations:
    """Give activations the sequences after this one, and build their rows."""
    entries = entry_hashes(stored.values()) if changed else {}
    state = RunningHash(entries)
    rows: list[ActivationRow] = []
    records: list[ChangeRows] = []
    for number, new in enumerate(changed, sequence + 1):
        before = stored.get(new.strategy_id)
        envelope = _succeeding(new, before).model_copy(update={"sequence": number, "epoch": epoch})
        entries[envelope.strategy_id] = entry_hash(envelope.json_dict())
        found = state.change(envelope.strategy_id, entries[envelope.strategy_id])
        envelope = envelope.model_copy(update={"state_hash": found})
        rows.append(_row(envelope))
        data = envelope.json_dict()
        change = RecordedChange(
            "activation.changed",
            envelope.world_id,
            envelope.strategy_id,
            before=before.json_dict() if before else None,
            after=data,
            correlation_id=envelope.run_id,
            event="activation_updated",
            data=data,
        )
        records.append(change_rows(change))
    return PreparedActivations(sequence, epoch, rows, records, entries)


def _store(tx: Transaction, fence: FenceRow, prepared: PreparedActivations) -> None:
    """Store activations. Orders wait meanwhile, so the rows are written together."""
    if not prepared.rows:
        return
    fence.activation_sequence += len(prepared.rows)
    tx.session.add(fence)
    tx.upsert_all(prepared.rows)
    tx.record_rows(prepared.records)


def _succeeding(envelope: ActivationEnvelope, before: ActivationEnvelope | None) -> ActivationEnvelope:
    """Return an activation with what it takes over from the one before it."""
    stays = before is not None and (before.active, before.effective_mode) == (
        envelope.active,
        envelope.effective_mode,
    )
    taken_over: dict[str, object] = {"stage_since": envelope.ts, "halted": False}
    if before is not None:
        taken_over["halted"] = before.halted
        if stays:
            taken_over |= before.model_dump(include={"stage_since", "dataset_fingerprint"})
    return envelope.model_copy(update=taken_over)


def sequenced_activation(
    tx: Transaction, fence: FenceRow, envelope: ActivationEnvelope, entries: dict[str, str]
) -> ActivationEnvelope:
    """Store a strategy's activation under the world's next sequence. The caller records the change."""
    fence.activation_sequence += 1
    tx.session.add(fence)
    envelope = envelope.model_copy(update={"sequence": fence.activation_sequence})
    return envelope.model_copy(update={"state_hash": store_activation(tx, envelope, entries)})


def activation_etag(world_id: str, strategy_id: str, active: bool, weight: float, mode: str) -> str:
    return hash_of(
        {"world": world_id, "strategy": strategy_id, "active": active, "weight": weight, "mode": mode}
    )
