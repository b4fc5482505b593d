"""WorldService's state in the database."""

from datetime import datetime

from sqlalchemy import func
from sqlmodel import Session, col, select

from activities.storage.database import Database, Transaction, utc_now
from activities.storage.tables import Activation, Binding, Decision, EvaluationRequest, Evidence, OutcomeRow, PolicyRow, RunContext, WorldRow
from activities.worlds.decision import Candidate
from activities.worlds.store import EvidenceBody, Judged, RunContextBody, activation_of, mode_of
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.events import state_hash
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.submission import Outcome
from qmtl_sdk.contracts.worlds import ActivationEnvelope, DecisionEnvelope, World, WorldSpec


class SqlWorldStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    # worlds and policies

    def create(self, spec: WorldSpec, policy: Policy | None, actor: str) -> World:
        etag, now = hash_of(spec.json_dict()), utc_now()
        version = 1 if policy else None
        with self._database.write(actor) as tx:
            row = WorldRow(world_id=spec.world, spec=spec.model_dump_json(), etag=etag, created_at=now, policy_version=version)
            if not tx.insert_new([row]):
                found = self._world_row(tx.session, spec.world)
                if found.etag != etag:
                    raise QmtlError("E_WORLD_EXISTS", f"there is a world {spec.world} already, and it is another one", "choose another name; qmtl world show prints the one there is")
                return _world(found)
            if policy:
                tx.session.add(_policy_row(spec.world, policy, 1, now))
            tx.record("world.created", spec.world, spec.world, after={"spec": spec.json_dict(), "policy_version": version})
            return _world(row)

    def world(self, world_id: str) -> World:
        with self._database.read() as session:
            return _world(self._world_row(session, world_id))

    def worlds(self) -> list[World]:
        with self._database.read() as session:
            return [_world(row) for row in session.exec(select(WorldRow).order_by(col(WorldRow.created_at)))]

    def add_policy(self, world_id: str, policy: Policy, actor: str) -> Policy:
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            world = self._world_row(tx.session, world_id)
            newest = tx.session.exec(select(func.max(PolicyRow.version)).where(PolicyRow.world_id == world_id)).one() or 0
            if policy.version is not None and policy.version != newest + 1:
                raise QmtlError(
                    "E_POLICY_VERSION", f"the policy says version {policy.version}, the next one of {world_id} is {newest + 1}", "leave the version out, or write the next one", next=newest + 1
                )
            before, now = world.policy_version, utc_now()
            row = _policy_row(world_id, policy, newest + 1, now)
            tx.session.add(row)
            world.policy_version = row.version
            tx.session.add(world)
            data = {"world_id": world_id, "version": row.version}
            tx.record("policy.added", world_id, f"{world_id}@{row.version}", before={"version": before}, after={"version": row.version}, event="policy_updated", data=data)
            return Policy.model_validate_json(row.body)

    def policy(self, world_id: str, version: int | None = None) -> Policy:
        with self._database.read() as session:
            world = self._world_row(session, world_id)
            wanted = version if version is not None else world.policy_version
            if wanted is None:
                raise QmtlError("E_POLICY_MISSING", f"world {world_id} has no policy", "add one: POST /worlds/{id}/policies, or qmtl world create with policy: in its file")
            row = session.get(PolicyRow, (world_id, wanted))
            if row is None:
                raise QmtlError("E_POLICY_UNKNOWN", f"world {world_id} has no policy version {wanted}", "list them with GET /worlds/{id}/policies")
            return Policy.model_validate_json(row.body)

    def policies(self, world_id: str) -> list[Policy]:
        with self._database.read() as session:
            self._world_row(session, world_id)
            rows = session.exec(select(PolicyRow).where(PolicyRow.world_id == world_id).order_by(col(PolicyRow.version)))
            return [Policy.model_validate_json(row.body) for row in rows]

    # runs and evidence

    def begin_run(self, run: RunContextBody) -> RunContextBody:
        with self._database.write("submission") as tx:
            row = RunContext(run_id=run.run_id, world_id=run.world_id, strategy_id=run.strategy_id, body=run.model_dump_json(), created_at=utc_now())
            if not tx.insert_new([row]):
                found = tx.session.get(RunContext, run.run_id)
                assert found is not None  # the insert found it there
                return RunContextBody.model_validate_json(found.body)
            bound = tx.insert_new([Binding(world_id=run.world_id, strategy_id=run.strategy_id, name=run.name, created_at=row.created_at)])
            after = {"context": run.context.json_dict(), "newly_bound": bool(bound)}
            tx.record("run.begun", run.world_id, run.strategy_id, after=after, correlation_id=run.run_id)
            return run

    def run(self, run_id: str) -> RunContextBody | None:
        with self._database.read() as session:
            row = session.get(RunContext, run_id)
            return RunContextBody.model_validate_json(row.body) if row else None

    def newest_run(self, strategy_id: str, world_id: str | None) -> RunContextBody | None:
        with self._database.read() as session:
            query = select(RunContext).where(RunContext.strategy_id == strategy_id)
            if world_id is not None:
                query = query.where(RunContext.world_id == world_id)
            row = session.exec(query.order_by(col(RunContext.created_at).desc())).first()
            return RunContextBody.model_validate_json(row.body) if row else None

    def save_evidence(self, evidence: EvidenceBody) -> EvidenceBody:
        with self._database.write("evaluation") as tx:
            row = Evidence(run_id=evidence.run_id, world_id=evidence.world_id, strategy_id=evidence.strategy_id, body=evidence.model_dump_json(), shadow=evidence.shadow, created_at=utc_now())
            if not tx.insert_new([row]):
                return _evidence(tx.session.exec(select(Evidence).where(Evidence.run_id == evidence.run_id)).one())
            after = {"metrics": evidence.metrics, "error_code": evidence.error_code, "returns": evidence.returns_hash}
            tx.record("evidence.saved", evidence.world_id, evidence.strategy_id, after=after, correlation_id=evidence.run_id)
            return evidence

    def evidence(self, run_id: str) -> EvidenceBody | None:
        with self._database.read() as session:
            row = session.exec(select(Evidence).where(Evidence.run_id == run_id)).first()
            return _evidence(row) if row else None

    def candidates(self, world_id: str) -> tuple[Candidate, ...]:
        newest = select(func.max(Evidence.seq)).where(Evidence.world_id == world_id, col(Evidence.shadow).is_(False)).group_by(col(Evidence.strategy_id))
        query = select(Evidence, Binding).where(col(Evidence.seq).in_(newest), Binding.world_id == Evidence.world_id, Binding.strategy_id == Evidence.strategy_id)
        with self._database.read() as session:
            return tuple(_candidate(_evidence(row), binding) for row, binding in session.exec(query.order_by(col(Binding.seq))))

    # decisions

    def save_decision(self, request_ids: tuple[str, ...], envelope: DecisionEnvelope, run_id: str, asked_by: str = "") -> Judged:
        with self._database.write(asked_by or "evaluation") as tx:
            tx.lock(f"world:{envelope.world_id}")
            done = self._answered(tx.session, request_ids)
            fresh = [request_id for request_id in request_ids if request_id not in done]
            if not fresh:
                return next(iter(done.values()))
            row = Decision(world_id=envelope.world_id, policy_version=envelope.policy_version, etag=envelope.etag, body=envelope.model_dump_json(), created_at=utc_now())
            tx.session.add(row)
            tx.session.flush()
            assert row.seq is not None  # given by the flush
            for request_id in fresh:
                tx.session.add(EvaluationRequest(request_id=request_id, world_id=envelope.world_id, decision_seq=row.seq))
            self._activate(tx, envelope, run_id)
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
            after = {"active": active, "etag": envelope.etag, "asked_by": asked_by}
            tx.record("decision.made", envelope.world_id, str(row.seq), after=after, correlation_id=run_id, event="decision_updated", about=envelope.world_id, data=data)
            return Judged(seq=row.seq, envelope=envelope)

    def _activate(self, tx: Transaction, envelope: DecisionEnvelope, run_id: str) -> None:
        """Set the activations that changed, each with its audit and outbox row."""
        there = {row.strategy_id: row for row in tx.session.exec(select(Activation).where(Activation.world_id == envelope.world_id))}
        said = {strategy_id: ActivationEnvelope.model_validate_json(row.body).json_dict() for strategy_id, row in there.items()}
        world = self._world_row(tx.session, envelope.world_id)
        for decision in envelope.strategies:
            mode = mode_of(decision, envelope)
            etag = hash_of({"world": envelope.world_id, "strategy": decision.strategy_id, "active": decision.active, "weight": decision.weight, "mode": mode})
            row = there.get(decision.strategy_id)
            if row is not None and row.etag == etag:
                continue
            world.activation_sequence += 1
            tx.session.add(world)
            activation = activation_of(decision, envelope, run_id, etag, world.activation_sequence)
            before = said.get(decision.strategy_id)
            said[decision.strategy_id] = activation.json_dict()
            activation = activation.model_copy(update={"state_hash": state_hash(said)})
            if row is None:
                row = Activation(world_id=envelope.world_id, strategy_id=decision.strategy_id, etag=etag, body="")
            row.etag, row.body = etag, activation.model_dump_json()
            tx.session.add(row)
            tx.record(
                "activation.changed",
                envelope.world_id,
                decision.strategy_id,
                before=before,
                after=activation.json_dict(),
                correlation_id=run_id,
                event="activation_updated",
                data=activation.json_dict(),
            )

    def answered(self, request_ids: tuple[str, ...]) -> dict[str, Judged]:
        with self._database.read() as session:
            return self._answered(session, request_ids)

    @staticmethod
    def _answered(session: Session, request_ids: tuple[str, ...]) -> dict[str, Judged]:
        requests = session.exec(select(EvaluationRequest).where(col(EvaluationRequest.request_id).in_(request_ids))).all()
        rows = {row.seq: row for row in session.exec(select(Decision).where(col(Decision.seq).in_({item.decision_seq for item in requests})))}
        judged = {seq: Judged(seq=seq, envelope=DecisionEnvelope.model_validate_json(row.body)) for seq, row in rows.items() if seq is not None}
        return {item.request_id: judged[item.decision_seq] for item in requests}

    def decision(self, world_id: str) -> DecisionEnvelope | None:
        return next(iter(self.decisions(world_id, 1)), None)

    def decisions(self, world_id: str, limit: int) -> list[DecisionEnvelope]:
        with self._database.read() as session:
            query = select(Decision).where(Decision.world_id == world_id).order_by(col(Decision.seq).desc()).limit(limit)
            return [DecisionEnvelope.model_validate_json(row.body) for row in session.exec(query)]

    def activations(self, world_id: str, strategy_id: str | None = None) -> list[ActivationEnvelope]:
        with self._database.read() as session:
            query = select(Activation).where(Activation.world_id == world_id).order_by(col(Activation.strategy_id))
            if strategy_id is not None:
                query = query.where(Activation.strategy_id == strategy_id)
            return [ActivationEnvelope.model_validate_json(row.body) for row in session.exec(query)]

    def activation_hash(self, world_id: str) -> tuple[int, str]:
        """How often the world's activation has changed, and the hash of what it is."""
        with self._database.read() as session:
            world = self._world_row(session, world_id)
            rows = session.exec(select(Activation).where(Activation.world_id == world_id))
            return world.activation_sequence, state_hash({row.strategy_id: ActivationEnvelope.model_validate_json(row.body).json_dict() for row in rows})

    def save_outcome(self, outcome: Outcome) -> Outcome:
        with self._database.write("submission") as tx:
            row = OutcomeRow(run_id=outcome.run_id, world_id=outcome.world_id, strategy_id=outcome.strategy_id, body=outcome.model_dump_json(), created_at=utc_now())
            if not tx.insert_new([row]):
                found = tx.session.exec(select(OutcomeRow).where(OutcomeRow.run_id == outcome.run_id)).one()
                return Outcome.model_validate_json(found.body)
            after = {"status": outcome.status, "decision": outcome.decision.etag if outcome.decision else None, "error_code": outcome.error_code}
            tx.record("submission.concluded", outcome.world_id, outcome.strategy_id, after=after, correlation_id=outcome.run_id)
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
            known = f"known: {', '.join(names[:10])}" if names else "there are none yet: qmtl world create FILE"
            raise QmtlError("E_WORLD_UNKNOWN", f"there is no world {world_id!r}{nearest(world_id, names)}", known)
        return row


def _world(row: WorldRow) -> World:
    return World(spec=WorldSpec.model_validate_json(row.spec), created_at=datetime.fromisoformat(row.created_at), policy_version=row.policy_version, etag=row.etag)


def _policy_row(world_id: str, policy: Policy, version: int, now: str) -> PolicyRow:
    stored = policy.model_copy(update={"world": world_id, "version": version})
    return PolicyRow(world_id=world_id, version=version, body=stored.model_dump_json(by_alias=True), created_at=now)


def _evidence(row: Evidence) -> EvidenceBody:
    return EvidenceBody.model_validate_json(row.body)


def _candidate(evidence: EvidenceBody, binding: Binding) -> Candidate:
    assert binding.seq is not None  # a stored row has one
    return Candidate(
        strategy_id=evidence.strategy_id,
        name=binding.name,
        bound=binding.seq,
        metrics=evidence.metrics,
        data_first=evidence.data_first,
        data_last=evidence.data_last,
        error_code=evidence.error_code,
        error=evidence.error,
    )
