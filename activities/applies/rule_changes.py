"""Changes of a world's rules: what loosens them waits for other people, where the policy in force says so.

A change is made in the transaction of the request where it loosens nothing, or where the policy in force asks
for no approval (`approvals.policy`). Otherwise it is stored, and made in the transaction of the last approval
unless the rules have changed meanwhile. No workflow waits: each request says what has become of it.
"""

import json
import uuid
from datetime import UTC, datetime, timedelta

from sqlmodel import Session, col, select

from activities.applies.loosening import loosened_policy, loosened_world
from activities.applies.own_requests import issuers_of, require_another_person
from activities.applies.status import approval_of, approvals_of, is_disabled
from activities.fence.store import update_world
from activities.messages.apply import ApprovalVerdict
from activities.storage.database import Database
from activities.storage.tables import ApprovalRow, PolicyRow, RuleChangeRow, WorldRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now, utc_text
from activities.worlds.policies import insert_policy, make_default, policy_version
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.applies import CHANGE_PREFIX, approvers
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.changes import ChangeStatus, RuleChange
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.world_changes import merged_spec
from qmtl_sdk.contracts.worlds import WorldSpec, WorldUpdate

# Changes that one request lists.
_LISTED = 100


class SqlRuleChanges:
    """Makes changes of rules, or stores them until enough people have approved."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_policy(self, world_id: str, policy: Policy, actor: str, token_id: str = "") -> Policy:
        """Add a policy version, which becomes the default.

        Raises QmtlError as `insert_policy` and `_request`.
        """
        added = self._request(world_id, RuleChange(policy=policy), actor, token_id)
        assert added is not None  # a change of the policy makes one
        return added

    def set_default(self, world_id: str, version: int, actor: str, token_id: str = "") -> Policy:
        """Make a policy version the default. Raises QmtlError: E_POLICY_UNKNOWN, and as `_request`."""
        found = self._request(world_id, RuleChange(default_version=version), actor, token_id)
        assert found is not None  # a change of the policy makes one
        return found

    def update_world(self, world_id: str, change: WorldUpdate, actor: str, token_id: str = "") -> None:
        """Change a world's spec. Raises QmtlError: E_WORLD_UNKNOWN, and as `_request`."""
        self._request(world_id, RuleChange(world=change), actor, token_id)

    def all(self, world_id: str) -> list[ChangeStatus]:
        """List the newest changes of a world that waited for approvals, newest first."""
        query = (
            select(RuleChangeRow)
            .where(RuleChangeRow.world_id == world_id)
            .order_by(col(RuleChangeRow.requested_at).desc())
            .limit(_LISTED)
        )
        with self._database.read() as session:
            world_row(session, world_id)
            return [_status(session, row) for row in session.exec(query)]

    def find(self, world_id: str, change_id: str) -> ChangeStatus:
        """Read one change. Raises QmtlError (E_CHANGE_UNKNOWN)."""
        with self._database.read() as session:
            return _status(session, _row(session, world_id, change_id))

    def decide(
        self,
        world_id: str,
        change_id: str,
        actor: str,
        verdict: ApprovalVerdict,
        reason: str,
        token_id: str = "",
    ) -> ChangeStatus:
        """Store a person's approval or rejection; make the change with the last approval that it needs.

        Idempotent: who approves again has approved once.

        Raises QmtlError: E_CHANGE_UNKNOWN, E_CHANGE_ENDED, E_APPROVAL_OWN, and what making it raises.
        """
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            row = _row(tx.session, world_id, change_id)
            _end_if_over(tx, row)
            if row.state == "waiting" and not _has_approved(tx.session, row, actor, verdict):
                _store_verdict(tx, row, actor, verdict, reason, token_id)
                found = approvals_of(tx.session, world_id, change_id, "change")
                tx.session.add(row)
                if verdict == "reject":
                    row.state = "rejected"
                elif len(approvers(found)) >= row.required:
                    row.state = "made"
                    _make(tx, world_id, RuleChange.model_validate_json(row.body), row.requested_by)
                ended = False
            else:
                ended = row.state != "waiting"
            status = _status(tx.session, row)
        if ended:
            raise QmtlError(
                "E_CHANGE_ENDED",
                f"{change_id} is {status.state}",
                "qmtl world changes W lists those that wait; request it again where it is still wanted",
            )
        return status

    def _request(self, world_id: str, change: RuleChange, actor: str, token_id: str) -> Policy | None:
        """Make the change, or store it; `token_id` is the token of the request.

        Idempotent: what waits already, of the same person, is not stored again. Returns the policy that the
        change made the default, if it did.

        Raises QmtlError: E_CHANGE_PENDING, once it is stored, with its id and how to approve it.
        """
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            world, policy = _present(tx.session, world_id)
            loosens = _loosens(tx.session, world, policy, change)
            required = policy.gating_policy.approvals.policy if policy else 0
            if not loosens or not required or policy is None:
                return _make(tx, world_id, change, actor)
            body = change.model_dump_json(by_alias=True)
            row = _waiting(tx, world_id, body, actor)
            if row is None:
                now = datetime.now(UTC)
                row = RuleChangeRow(
                    change_id=f"{CHANGE_PREFIX}{uuid.uuid4().hex[:16]}",
                    world_id=world_id,
                    body=body,
                    loosens=json.dumps(loosens),
                    rules=_rules(tx.session, world_id),
                    required=required,
                    state="waiting",
                    requested_by=actor,
                    requested_issuers=json.dumps(issuers_of(tx.session, token_id)),
                    requested_at=utc_text(now),
                    expires_at=utc_text(now + timedelta(seconds=policy.gating_policy.approvals.expires)),
                )
                tx.session.add(row)
                after = {"title": change.title, "loosens": loosens, "change": json.loads(body)}
                tx.record(RecordedChange("change.requested", world_id, row.change_id, after=after))
            change_id = row.change_id
        people = "1 approval" if required == 1 else f"{required} approvals"
        raise QmtlError(
            "E_CHANGE_PENDING",
            f"{change.title} loosens {'; '.join(loosens[:5])}; it is recorded and waits for {people}",
            f"another person approves it: qmtl world approve {world_id} {change_id}",
            change_id=change_id,
            loosens=loosens,
        )


def _row(session: Session, world_id: str, change_id: str) -> RuleChangeRow:
    row = session.get(RuleChangeRow, change_id)
    if row is None or row.world_id != world_id:
        raise QmtlError(
            "E_CHANGE_UNKNOWN",
            f"there is no change {change_id[:64]!r} in {world_id}",
            "qmtl world changes W lists them",
        )
    return row


def _waiting(tx: Transaction, world_id: str, body: str, actor: str) -> RuleChangeRow | None:
    """Return the same change of the same person that waits already; None for none."""
    query = select(RuleChangeRow).where(
        RuleChangeRow.world_id == world_id,
        RuleChangeRow.state == "waiting",
        RuleChangeRow.requested_by == actor,
        RuleChangeRow.body == body,
    )
    for row in tx.session.exec(query):
        _end_if_over(tx, row)
        if row.state == "waiting":
            return row
    return None


def _has_approved(session: Session, row: RuleChangeRow, actor: str, verdict: ApprovalVerdict) -> bool:
    """Return whether a person who approves a change has done so before."""
    found = approvals_of(session, row.world_id, row.change_id, "change")
    return verdict == "approve" and actor in approvers(found)


def _present(session: Session, world_id: str) -> tuple[WorldRow, Policy | None]:
    """Read a world and the policy that is in force. Raises QmtlError (E_WORLD_UNKNOWN)."""
    world = world_row(session, world_id)
    row = session.get(PolicyRow, (world_id, world.policy_version)) if world.policy_version else None
    return world, Policy.model_validate_json(row.body) if row else None


def _rules(session: Session, world_id: str) -> str:
    """Hash the rules in force: what a change was compared with."""
    world = world_row(session, world_id)
    spec = WorldSpec.model_validate_json(world.spec).json_dict()
    del spec["description"]  # no rule
    return hash_of({"policy": world.policy_version, "world": spec})


def _loosens(session: Session, world: WorldRow, policy: Policy | None, change: RuleChange) -> list[str]:
    """Return what a change loosens. Raises QmtlError (E_POLICY_UNKNOWN)."""
    if change.world is not None:
        before = WorldSpec.model_validate_json(world.spec)
        return loosened_world(before, merged_spec(before, change.world))
    after = change.policy
    if change.default_version is not None:
        after = policy_version(session, world.world_id, change.default_version)
    return loosened_policy(policy, after) if policy is not None and after is not None else []


def _make(tx: Transaction, world_id: str, change: RuleChange, actor: str) -> Policy | None:
    """Make a change; return the policy that it makes the default, if it does.

    The audit trail names who approved it last; `change.requested` names `actor`.
    """
    if change.policy is not None:
        return insert_policy(tx, world_id, change.policy)
    if change.default_version is not None:
        return make_default(tx, world_id, change.default_version)
    if change.world is not None:
        update_world(tx, world_id, change.world, actor)
    return None


def _end_if_over(tx: Transaction, row: RuleChangeRow) -> None:
    """End a change that waits and can't be made any more."""
    if row.state != "waiting":
        return
    if row.expires_at < utc_now():
        row.state = "expired"
    elif row.rules != _rules(tx.session, row.world_id) or is_disabled(tx.session, row.requested_by):
        row.state = "outdated"
    else:
        return
    tx.session.add(row)
    tx.record(RecordedChange("change.ended", row.world_id, row.change_id, after={"state": row.state}))


def _store_verdict(
    tx: Transaction, row: RuleChangeRow, actor: str, verdict: ApprovalVerdict, reason: str, token_id: str
) -> None:
    """Store what a person says. Raises QmtlError (E_APPROVAL_OWN)."""
    if verdict == "approve":
        issuers = json.loads(row.requested_issuers)
        require_another_person(tx, row.change_id, row.requested_by, issuers, actor, token_id)
    approval = ApprovalRow(
        approval_id=f"rule-{uuid.uuid4().hex}",
        world_id=row.world_id,
        about="change",
        subject=row.change_id,
        actor=actor,
        verdict=verdict,
        reason=reason,
        via="gateway",
        counts=True,
        plan_hash=hash_of(json.loads(row.body)),
        at=utc_now(),
        read_at=utc_now(),
    )
    tx.session.add(approval)
    tx.session.flush()
    action = "change.approved" if verdict == "approve" else "change.rejected"
    tx.record(RecordedChange(action, row.world_id, row.change_id, after=approval_of(approval).json_dict()))


def _status(session: Session, row: RuleChangeRow) -> ChangeStatus:
    return ChangeStatus.model_validate(
        {
            **row.model_dump(include={"world_id", "change_id", "required", "state", "requested_by"}),
            "title": RuleChange.model_validate_json(row.body).title,
            "loosens": json.loads(row.loosens),
            "requested_at": datetime.fromisoformat(row.requested_at),
            "expires_at": datetime.fromisoformat(row.expires_at),
            "approvals": approvals_of(session, row.world_id, row.change_id, "change"),
        }
    )
