"""WorldService's state in the database."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from activities.storage.database import Database, Transaction, utc_now
from activities.storage.tables import (
    ActivationRow,
    BindingRow,
    DecisionInputsRow,
    DecisionRow,
    EvaluationRequestRow,
    EvidenceRow,
    FenceRow,
    HysteresisRow,
    OutcomeRow,
    PolicyRow,
    RunContextRow,
    ValidationRow,
    WorldNodeRow,
    WorldRow,
)
from activities.storage.tables import EdgeOverrideRow as EdgeOverrideRow
from activities.worlds.candidate import Candidate, HysteresisState
from activities.worlds.gate import LIVE_EDGE, OPEN, activation_hashes, halt, locked_fence, store_activation
from activities.worlds.store import (
    DecisionInputs,
    EvidenceBody,
    NodeValidation,
    RunContextBody,
    StoredDecision,
    activation_of,
    stage_after,
)
from qmtl_sdk.contracts.applies import GateStatus
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.events import combined_hash
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.submission import Outcome
from qmtl_sdk.contracts.worlds import (
    WHOLE_WORLD,
    ActivationEnvelope,
    BindingInfo,
    DecisionEnvelope,
    EdgeOverride,
    World,
    WorldNodeRef,
    WorldSpec,
    WorldUpdate,
)


class SqlWorldStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    # worlds and policies

    def create(self, spec: WorldSpec, policy: Policy | None, actor: str) -> World:
        etag, now = hash_of(spec.json_dict()), utc_now()
        version = 1 if policy else None
        with self._database.write(actor) as tx:
            row = WorldRow(
                world_id=spec.world,
                spec=spec.model_dump_json(),
                etag=etag,
                created_at=now,
                policy_version=version,
            )
            if not tx.insert_new([row]):
                found = self._world_row(tx.session, spec.world)
                if found.etag != etag:
                    raise QmtlError(
                        "E_WORLD_EXISTS",
                        f"there is a world {spec.world} already, and it is another one",
                        "choose another name; qmtl world show prints the one there is",
                    )
                return world_of(found)
            if policy:
                tx.session.add(_policy_row(spec.world, policy, 1, now))
            breaker = spec.circuit_breaker
            tx.session.add(
                FenceRow(
                    world_id=spec.world,
                    allow_live=spec.allow_live,
                    max_orders=breaker.max_orders_per_minute,
                    max_refused=breaker.max_refused_per_minute,
                )
            )
            tx.session.add(
                EdgeOverrideRow(
                    world_id=spec.world,
                    src=LIVE_EDGE[0],
                    dst=LIVE_EDGE[1],
                    active=False,
                    reason="closed until an apply opens it",
                    updated_at=now,
                )
            )
            tx.record(
                "world.created",
                spec.world,
                spec.world,
                after={"spec": spec.json_dict(), "policy_version": version},
            )
            return world_of(row)

    def world(self, world_id: str) -> World:
        with self._database.read() as session:
            return world_of(self._world_row(session, world_id))

    def worlds(self) -> list[World]:
        with self._database.read() as session:
            return [
                world_of(row) for row in session.exec(select(WorldRow).order_by(col(WorldRow.created_at)))
            ]

    def update(self, world_id: str, change: WorldUpdate, actor: str) -> World:
        """Change what is given. What the fence reads of it holds for the next order."""
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            fence = locked_fence(tx, world_id)
            row = self._world_row(tx.session, world_id)
            before = WorldSpec.model_validate_json(row.spec)
            given = {
                name: getattr(change, name)
                for name in ("description", "allow_live", "circuit_breaker", "data")
                if getattr(change, name) is not None
            }
            after = WorldSpec.model_validate(
                {
                    **before.model_dump(),
                    **{
                        name: value.model_dump() if isinstance(value, Model) else value
                        for name, value in given.items()
                    },
                }
            )
            row.spec, row.etag, row.state = (
                after.model_dump_json(),
                hash_of(after.json_dict()),
                change.state or row.state,
            )
            fence.allow_live = after.allow_live and row.state == "active"
            fence.max_orders, fence.max_refused = (
                after.circuit_breaker.max_orders_per_minute,
                after.circuit_breaker.max_refused_per_minute,
            )
            tx.session.add(row)
            tx.session.add(fence)
            if row.state == "archived" and not fence.halted:
                halt(tx, fence, f"archived by {actor}")
            told = change.model_dump(mode="json", exclude_none=True)
            tx.record(
                "world.updated",
                world_id,
                world_id,
                before={name: before.json_dict().get(name) for name in told},
                after=told,
            )
            return world_of(row)

    def override(self, world_id: str, edge: EdgeOverride, actor: str) -> EdgeOverride:
        """Close or open an edge. Raises QmtlError: E_EDGE_LIVE for opening the one to live, which only an apply does."""
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            fence = locked_fence(tx, world_id)
            if edge.active and edge.dst == LIVE_EDGE[1]:
                raise QmtlError(
                    "E_EDGE_LIVE",
                    "only an apply opens an edge to live",
                    "ask for one: qmtl world apply W --to live",
                )
            if (edge.src, edge.dst) == LIVE_EDGE:
                fence.live_edge = edge.active
                tx.session.add(fence)
            there = tx.session.get(EdgeOverrideRow, (world_id, edge.src, edge.dst))
            before = {"active": there.active, "reason": there.reason} if there else None
            now = utc_now()
            tx.upsert(
                EdgeOverrideRow(
                    world_id=world_id,
                    src=edge.src,
                    dst=edge.dst,
                    active=edge.active,
                    reason=edge.reason,
                    updated_at=now,
                )
            )
            tx.record(
                "edge.overridden",
                world_id,
                f"{edge.src} → {edge.dst}"[:250],
                before=before,
                after={"active": edge.active, "reason": edge.reason},
            )
            return edge.model_copy(update={"updated_at": datetime.fromisoformat(now)})

    def overrides(self, world_id: str) -> list[EdgeOverride]:
        with self._database.read() as session:
            self._world_row(session, world_id)
            rows = session.exec(
                select(EdgeOverrideRow)
                .where(EdgeOverrideRow.world_id == world_id)
                .order_by(col(EdgeOverrideRow.src), col(EdgeOverrideRow.dst))
            )
            return [
                EdgeOverride(
                    src=row.src,
                    dst=row.dst,
                    active=row.active,
                    reason=row.reason,
                    updated_at=datetime.fromisoformat(row.updated_at),
                )
                for row in rows
            ]

    def gate(self, world_id: str) -> GateStatus:
        """Whether orders can pass at all."""
        with self._database.read() as session:
            self._world_row(session, world_id)
            fence = session.get_one(FenceRow, world_id)
            return GateStatus.model_validate(
                {
                    "world_id": world_id,
                    "epoch": fence.epoch,
                    "state": fence.state,
                    "held_by": fence.holder,
                    "halted": fence.halted,
                    "allow_live": fence.allow_live,
                    "live_edge": fence.live_edge,
                    "decision_fresh_until": fence.fresh_until or None,
                }
            )

    def add_policy(self, world_id: str, policy: Policy, actor: str) -> Policy:
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            world = self._world_row(tx.session, world_id)
            newest = (
                tx.session.exec(
                    select(func.max(PolicyRow.version)).where(PolicyRow.world_id == world_id)
                ).one()
                or 0
            )
            if policy.version is not None and policy.version != newest + 1:
                raise QmtlError(
                    "E_POLICY_VERSION",
                    f"the policy says version {policy.version}, the next one of {world_id} is {newest + 1}",
                    "leave the version out, or write the next one",
                    next=newest + 1,
                )
            before, now = world.policy_version, utc_now()
            row = _policy_row(world_id, policy, newest + 1, now)
            tx.session.add(row)
            world.policy_version = row.version
            tx.session.add(world)
            data = {"world_id": world_id, "version": row.version}
            tx.record(
                "policy.added",
                world_id,
                f"{world_id}@{row.version}",
                before={"version": before},
                after={"version": row.version},
                event="policy_updated",
                data=data,
            )
            return Policy.model_validate_json(row.body)

    def policy(self, world_id: str, version: int | None = None) -> Policy:
        with self._database.read() as session:
            world = self._world_row(session, world_id)
            wanted = version if version is not None else world.policy_version
            if wanted is None:
                raise QmtlError(
                    "E_POLICY_MISSING",
                    f"world {world_id} has no policy",
                    "add one: POST /worlds/{id}/policies, or qmtl world create with policy: in its file",
                )
            row = session.get(PolicyRow, (world_id, wanted))
            if row is None:
                raise QmtlError(
                    "E_POLICY_UNKNOWN",
                    f"world {world_id} has no policy version {wanted}",
                    "list them with GET /worlds/{id}/policies",
                )
            return Policy.model_validate_json(row.body)

    def policies(self, world_id: str) -> list[Policy]:
        with self._database.read() as session:
            self._world_row(session, world_id)
            rows = session.exec(
                select(PolicyRow).where(PolicyRow.world_id == world_id).order_by(col(PolicyRow.version))
            )
            return [Policy.model_validate_json(row.body) for row in rows]

    def set_default(self, world_id: str, version: int, actor: str) -> Policy:
        """Judge by this version from now on. Raises QmtlError (E_POLICY_UNKNOWN)."""
        found = self.policy(world_id, version)
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            world = self._world_row(tx.session, world_id)
            before, world.policy_version = world.policy_version, version
            tx.session.add(world)
            data = {"world_id": world_id, "version": version}
            tx.record(
                "policy.default",
                world_id,
                f"{world_id}@{version}",
                before={"version": before},
                after={"version": version},
                event="policy_updated",
                data=data,
            )
        return found

    def bindings(self, world_id: str) -> list[BindingInfo]:
        with self._database.read() as session:
            self._world_row(session, world_id)
            rows = session.exec(
                select(BindingRow).where(BindingRow.world_id == world_id).order_by(col(BindingRow.seq))
            )
            return [
                BindingInfo(
                    world_id=row.world_id,
                    strategy_id=row.strategy_id,
                    name=row.name,
                    created_at=datetime.fromisoformat(row.created_at),
                )
                for row in rows
            ]

    def nodes(self, world_id: str, execution_domain: str | None = None) -> list[WorldNodeRef]:
        """The world's view of the graph."""
        query = (
            select(WorldNodeRow)
            .where(WorldNodeRow.world_id == world_id)
            .order_by(col(WorldNodeRow.execution_domain), col(WorldNodeRow.node_id))
            .limit(10_000)
        )
        if execution_domain is not None:
            query = query.where(WorldNodeRow.execution_domain == execution_domain)
        with self._database.read() as session:
            self._world_row(session, world_id)
            return [WorldNodeRef.model_validate(row.model_dump()) for row in session.exec(query)]

    # runs and evidence

    def begin_run(self, run: RunContextBody) -> RunContextBody:
        with self._database.write("submission") as tx:
            row = RunContextRow(
                run_id=run.run_id,
                world_id=run.world_id,
                strategy_id=run.strategy_id,
                body=run.model_dump_json(),
                created_at=utc_now(),
            )
            if not tx.insert_new([row]):
                found = tx.session.get(RunContextRow, run.run_id)
                assert found is not None  # the insert found it there
                return RunContextBody.model_validate_json(found.body)
            bound = tx.insert_new(
                [
                    BindingRow(
                        world_id=run.world_id,
                        strategy_id=run.strategy_id,
                        name=run.name,
                        created_at=row.created_at,
                    )
                ]
            )
            after = {"context": run.context.json_dict(), "newly_bound": bool(bound)}
            tx.record("run.begun", run.world_id, run.strategy_id, after=after, correlation_id=run.run_id)
            return run

    def run(self, run_id: str) -> RunContextBody | None:
        with self._database.read() as session:
            row = session.get(RunContextRow, run_id)
            return RunContextBody.model_validate_json(row.body) if row else None

    def newest_run(self, strategy_id: str, world_id: str | None) -> RunContextBody | None:
        with self._database.read() as session:
            query = select(RunContextRow).where(RunContextRow.strategy_id == strategy_id)
            if world_id is not None:
                query = query.where(RunContextRow.world_id == world_id)
            row = session.exec(query.order_by(col(RunContextRow.created_at).desc())).first()
            return RunContextBody.model_validate_json(row.body) if row else None

    def save_evidence(
        self, evidence: EvidenceBody, validations: Sequence[NodeValidation] = ()
    ) -> EvidenceBody:
        with self._database.write("evaluation") as tx:
            row = EvidenceRow(
                run_id=evidence.run_id,
                world_id=evidence.world_id,
                strategy_id=evidence.strategy_id,
                body=evidence.model_dump_json(),
                shadow=evidence.shadow,
                created_at=utc_now(),
            )
            if not tx.insert_new([row]):
                return _evidence(
                    tx.session.exec(select(EvidenceRow).where(EvidenceRow.run_id == evidence.run_id)).one()
                )
            for item in validations:
                found = {
                    "world_id": evidence.world_id,
                    "node_id": item.node_id,
                    "execution_domain": item.execution_domain,
                    "eval_key": item.eval_key,
                }
                state = "invalid" if evidence.error_code else "valid"
                tx.upsert(WorldNodeRow(**found, state=state, updated_at=utc_now()))
                tx.insert_new(
                    [
                        ValidationRow(
                            **found,
                            result=state,
                            body=evidence.model_dump_json(include={"run_id", "error_code"}),
                            created_at=utc_now(),
                        )
                    ]
                )
            after = {
                "metrics": evidence.metrics,
                "error_code": evidence.error_code,
                "returns": evidence.returns_hash,
            }
            tx.record(
                "evidence.saved",
                evidence.world_id,
                evidence.strategy_id,
                after=after,
                correlation_id=evidence.run_id,
            )
            return evidence

    def evidence(self, run_id: str) -> EvidenceBody | None:
        with self._database.read() as session:
            row = session.exec(select(EvidenceRow).where(EvidenceRow.run_id == run_id)).first()
            return _evidence(row) if row else None

    def candidates(self, world_id: str) -> tuple[Candidate, ...]:
        with self._database.read() as session:
            return newest_evidence(session, world_id)

    # decisions

    def save_decision(
        self,
        request_ids: tuple[str, ...],
        envelope: DecisionEnvelope,
        run_id: str,
        asked_by: str = "",
        basis: DecisionInputs | None = None,
    ) -> StoredDecision:
        with self._database.write(asked_by or "evaluation") as tx:
            tx.lock(f"world:{envelope.world_id}")
            done = self._answered(tx.session, request_ids)
            fresh = [request_id for request_id in request_ids if request_id not in done]
            if not fresh:
                return next(iter(done.values()))
            fence = locked_fence(tx, envelope.world_id)
            row = DecisionRow(
                world_id=envelope.world_id,
                policy_version=envelope.policy_version,
                etag=envelope.etag,
                body=envelope.model_dump_json(),
                created_at=utc_now(),
            )
            tx.session.add(row)
            tx.session.flush()
            assert row.seq is not None  # given by the flush
            for request_id in fresh:
                tx.session.add(
                    EvaluationRequestRow(
                        request_id=request_id, world_id=envelope.world_id, decision_seq=row.seq
                    )
                )
            self._remember(tx, envelope.world_id, row.seq, basis or DecisionInputs())
            fence.fresh_until = (envelope.decided_at + timedelta(seconds=envelope.ttl)).isoformat(
                timespec="microseconds"
            )
            tx.session.add(fence)
            if (
                fence.state == OPEN
            ):  # while an apply holds the world nothing else changes it; its unfreeze takes up what was decided meanwhile
                apply_decision(tx, self._world_row(tx.session, envelope.world_id), envelope, run_id)
            active = {item.strategy_id: item.weight for item in envelope.strategies if item.active}
            data = {
                "world_id": envelope.world_id,
                "etag": envelope.etag,
                "policy_version": envelope.policy_version,
                "effective_mode": envelope.effective_mode,
                "decided_at": envelope.json_dict()["decided_at"],
                "ttl": envelope.ttl,
                "reason": envelope.reason,
                "active": active,
            }
            after = {
                "active": active,
                "etag": envelope.etag,
                "asked_by": asked_by,
                "decided_at": data["decided_at"],
                "ttl": envelope.ttl,
            }
            tx.record(
                "decision.made",
                envelope.world_id,
                str(row.seq),
                after=after,
                correlation_id=run_id,
                event="decision_updated",
                about=envelope.world_id,
                data=data,
            )
            return StoredDecision(seq=row.seq, envelope=envelope)

    @staticmethod
    def _remember(tx: Transaction, world_id: str, seq: int, basis: DecisionInputs) -> None:
        """What hysteresis goes on from, and what the decision was made of."""
        tx.session.add(
            DecisionInputsRow(
                decision_seq=seq, world_id=world_id, body=basis.model_dump_json(exclude={"after"})
            )
        )
        for strategy_id, standing in basis.after.items():
            tx.upsert(
                HysteresisRow(world_id=world_id, strategy_id=strategy_id, body=standing.model_dump_json())
            )

    def standings(self, world_id: str) -> dict[str, HysteresisState]:
        with self._database.read() as session:
            rows = session.exec(select(HysteresisRow).where(HysteresisRow.world_id == world_id))
            return {row.strategy_id: HysteresisState.model_validate_json(row.body) for row in rows}

    def bases(
        self, world_id: str, since: datetime | None = None, limit: int = 1000
    ) -> list[tuple[DecisionEnvelope, DecisionInputs, tuple[Candidate, ...]]]:
        """Past decisions, oldest first, with what each was made of."""
        query = select(DecisionRow, DecisionInputsRow).where(
            DecisionRow.world_id == world_id, col(DecisionInputsRow.decision_seq) == col(DecisionRow.seq)
        )
        if since is not None:
            query = query.where(DecisionRow.created_at >= since.isoformat(timespec="microseconds"))
        with self._database.read() as session:
            found = [
                (
                    DecisionEnvelope.model_validate_json(row.body),
                    DecisionInputs.model_validate_json(judged.body),
                )
                for row, judged in session.exec(query.order_by(col(DecisionRow.seq).desc()).limit(limit))
            ]
            seqs = {seq for _, basis in found for seq in basis.evidence}
            rows = session.exec(
                select(EvidenceRow, BindingRow).where(
                    col(EvidenceRow.seq).in_(seqs),
                    BindingRow.world_id == EvidenceRow.world_id,
                    BindingRow.strategy_id == EvidenceRow.strategy_id,
                )
            ).all()
            candidates = {
                row.seq: _candidate(_evidence(row), binding, row.seq)
                for row, binding in rows
                if row.seq is not None
            }
            return [
                (envelope, basis, tuple(candidates[seq] for seq in basis.evidence))
                for envelope, basis in reversed(found)
            ]

    def trading_until(self, moment: datetime) -> list[str]:
        """Worlds in which a strategy is on for paper or live, and whose newest decision is fresh no longer than `moment`."""
        trading = select(ActivationRow.world_id).where(
            col(ActivationRow.active).is_(True), col(ActivationRow.mode).in_(("paper", "live"))
        )
        until = moment.isoformat(timespec="microseconds")
        with self._database.read() as session:
            return list(
                session.exec(
                    select(FenceRow.world_id)
                    .where(FenceRow.fresh_until < until, col(FenceRow.world_id).in_(trading))
                    .order_by(col(FenceRow.world_id))
                )
            )

    def answered(self, request_ids: tuple[str, ...]) -> dict[str, StoredDecision]:
        with self._database.read() as session:
            return self._answered(session, request_ids)

    @staticmethod
    def _answered(session: Session, request_ids: tuple[str, ...]) -> dict[str, StoredDecision]:
        requests = session.exec(
            select(EvaluationRequestRow).where(col(EvaluationRequestRow.request_id).in_(request_ids))
        ).all()
        rows = {
            row.seq: row
            for row in session.exec(
                select(DecisionRow).where(col(DecisionRow.seq).in_({item.decision_seq for item in requests}))
            )
        }
        judged = {
            seq: StoredDecision(seq=seq, envelope=DecisionEnvelope.model_validate_json(row.body))
            for seq, row in rows.items()
            if seq is not None
        }
        return {item.request_id: judged[item.decision_seq] for item in requests}

    def decision(self, world_id: str) -> DecisionEnvelope | None:
        with self._database.read() as session:
            return newest_decision(session, world_id)

    def decisions(self, world_id: str, limit: int) -> list[DecisionEnvelope]:
        with self._database.read() as session:
            return newest_decisions(session, world_id, limit)

    def activations(self, world_id: str, strategy_id: str | None = None) -> list[ActivationEnvelope]:
        with self._database.read() as session:
            return activations_of(session, world_id, strategy_id)

    def activation_hash(self, world_id: str) -> tuple[int, str]:
        """How often the world's activation has changed, and the hash of what it is."""
        with self._database.read() as session:
            world = self._world_row(session, world_id)
            return world.activation_sequence, combined_hash(activation_hashes(session, world_id))

    def save_outcome(self, outcome: Outcome) -> Outcome:
        with self._database.write("submission") as tx:
            row = OutcomeRow(
                run_id=outcome.run_id,
                world_id=outcome.world_id,
                strategy_id=outcome.strategy_id,
                body=outcome.model_dump_json(),
                created_at=utc_now(),
            )
            if not tx.insert_new([row]):
                found = tx.session.exec(select(OutcomeRow).where(OutcomeRow.run_id == outcome.run_id)).one()
                return Outcome.model_validate_json(found.body)
            after = {
                "status": outcome.status,
                "decision": outcome.decision.etag if outcome.decision else None,
                "error_code": outcome.error_code,
            }
            tx.record(
                "submission.concluded",
                outcome.world_id,
                outcome.strategy_id,
                after=after,
                correlation_id=outcome.run_id,
            )
            return outcome

    def outcome(self, run_id: str) -> Outcome | None:
        with self._database.read() as session:
            row = session.exec(select(OutcomeRow).where(OutcomeRow.run_id == run_id)).first()
            return Outcome.model_validate_json(row.body) if row else None

    @staticmethod
    def _world_row(session: Session, world_id: str) -> WorldRow:
        row = session.get(WorldRow, world_id)
        if row is None:
            names = list(session.exec(select(WorldRow.world_id)))
            known = (
                f"known: {', '.join(names[:10])}" if names else "there are none yet: qmtl world create FILE"
            )
            raise QmtlError(
                "E_WORLD_UNKNOWN", f"there is no world {world_id!r}{nearest(world_id, names)}", known
            )
        return row


def newest_decisions(session: Session, world_id: str, limit: int) -> list[DecisionEnvelope]:
    """Newest first."""
    query = (
        select(DecisionRow)
        .where(DecisionRow.world_id == world_id)
        .order_by(col(DecisionRow.seq).desc())
        .limit(limit)
    )
    return [DecisionEnvelope.model_validate_json(row.body) for row in session.exec(query)]


def newest_decision(session: Session, world_id: str) -> DecisionEnvelope | None:
    return next(iter(newest_decisions(session, world_id, 1)), None)


def newest_evidence(session: Session, world_id: str) -> tuple[Candidate, ...]:
    """The newest evidence of every strategy of a world that has any, in the order of their bindings."""
    # The newest of each strategy, by the index: a world's history costs nothing here.
    its = aliased(EvidenceRow)
    mine = select(its.seq).where(
        its.world_id == BindingRow.world_id,
        its.strategy_id == BindingRow.strategy_id,
        col(its.shadow).is_(False),
    )
    newest = mine.order_by(col(its.seq).desc()).limit(1).correlate(BindingRow).scalar_subquery()
    query = select(EvidenceRow, BindingRow).where(
        BindingRow.world_id == world_id,
        EvidenceRow.world_id == BindingRow.world_id,
        EvidenceRow.strategy_id == BindingRow.strategy_id,
        col(EvidenceRow.seq) == newest,
    )
    return tuple(
        _candidate(_evidence(row), binding, row.seq or 0)
        for row, binding in session.exec(query.order_by(col(BindingRow.seq)))
    )


def activations_of(
    session: Session, world_id: str, strategy_id: str | None = None
) -> list[ActivationEnvelope]:
    """Of every strategy of a world, or of this one; the world's own is not among them."""
    query = (
        select(ActivationRow)
        .where(ActivationRow.world_id == world_id, ActivationRow.strategy_id != WHOLE_WORLD)
        .order_by(col(ActivationRow.strategy_id))
    )
    if strategy_id is not None:
        query = query.where(ActivationRow.strategy_id == strategy_id)
    return [ActivationEnvelope.model_validate_json(row.body) for row in session.exec(query)]


def apply_decision(tx: Transaction, world: WorldRow, envelope: DecisionEnvelope, run_id: str) -> None:
    """Set the activations that a decision changes by itself, each with its audit and outbox row: what needs an apply stays as it is. The caller holds the fence."""
    there = {item.strategy_id: item for item in activations_of(tx.session, world.world_id)}
    entries: dict[str, str] | None = None
    for decision in envelope.strategies:
        before = there.get(decision.strategy_id)
        mode, weight = stage_after(decision, envelope, before)
        etag = activation_etag(world.world_id, decision.strategy_id, decision.active, weight, mode)
        if before is not None and before.etag == etag:
            continue
        entries = activation_hashes(tx.session, world.world_id) if entries is None else entries
        change_activation(
            tx, world, activation_of(decision, envelope, run_id, etag, mode, weight), before, entries
        )


def change_activation(
    tx: Transaction,
    world: WorldRow,
    envelope: ActivationEnvelope,
    before: ActivationEnvelope | None,
    entries: dict[str, str],
) -> None:
    """Store one strategy's activation under the world's next sequence, and tell of it."""
    world.activation_sequence += 1
    tx.session.add(world)
    stays = before is not None and (before.active, before.effective_mode) == (
        envelope.active,
        envelope.effective_mode,
    )
    since = before.stage_since if before is not None and stays else envelope.ts
    envelope = envelope.model_copy(update={"sequence": world.activation_sequence, "stage_since": since})
    envelope = envelope.model_copy(update={"state_hash": store_activation(tx, envelope, entries)})
    was = before.json_dict() if before else None
    data = envelope.json_dict()
    tx.record(
        "activation.changed",
        world.world_id,
        envelope.strategy_id,
        before=was,
        after=data,
        correlation_id=envelope.run_id,
        event="activation_updated",
        data=data,
    )


def activation_etag(world_id: str, strategy_id: str, active: bool, weight: float, mode: str) -> str:
    return hash_of(
        {"world": world_id, "strategy": strategy_id, "active": active, "weight": weight, "mode": mode}
    )


def world_of(row: WorldRow) -> World:
    return World(
        spec=WorldSpec.model_validate_json(row.spec),
        created_at=datetime.fromisoformat(row.created_at),
        policy_version=row.policy_version,
        etag=row.etag,
        pinned_fingerprint=row.pinned_fingerprint,
        state=row.state,
    )


def _policy_row(world_id: str, policy: Policy, version: int, now: str) -> PolicyRow:
    stored = policy.model_copy(update={"world": world_id, "version": version})
    return PolicyRow(
        world_id=world_id, version=version, body=stored.model_dump_json(by_alias=True), created_at=now
    )


def _evidence(row: EvidenceRow) -> EvidenceBody:
    return EvidenceBody.model_validate_json(row.body)


def _candidate(evidence: EvidenceBody, binding: BindingRow, evidence_seq: int) -> Candidate:
    assert binding.seq is not None  # a stored row has one
    return Candidate(
        evidence_seq=evidence_seq,
        returns_hash=evidence.returns_hash,
        sectors=evidence.sectors,
        dataset_fingerprint=evidence.dataset_fingerprint,
        strategy_id=evidence.strategy_id,
        name=binding.name,
        bound=binding.seq,
        metrics=evidence.metrics,
        data_first=evidence.data_first,
        data_last=evidence.data_last,
        error_code=evidence.error_code,
        error=evidence.error,
    )
