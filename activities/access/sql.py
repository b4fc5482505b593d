"""Issued tokens in the database."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import bindparam, delete, literal, text, tuple_
from sqlmodel import Session, col, select

from activities.access.principals import lock_principal, require_enabled
from activities.settings import MAX_STREAM_S
from activities.storage.database import Database
from activities.storage.tables import TokenRow
from activities.storage.transactions import RecordedChange, utc_before, utc_now
from qmtl_sdk.contracts.access import Role, TokenInfo
from qmtl_sdk.contracts.canonical import canonical_json
from qmtl_sdk.contracts.errors import QmtlError

_REVOKED_AT = text("SELECT token_id, revoked_at FROM token WHERE token_id IN :token_ids").bindparams(
    bindparam("token_ids", expanding=True)
)
# How long a stream may outlive the token that it was requested with, and as long for clocks that differ.
_MAX_STREAM = timedelta(seconds=2 * MAX_STREAM_S)

# For how long a token is known after its end: an identity provider gives each person many. One that was
# revoked stays longer (`activities/retention/tokens.py`).
_KNOWN_AFTER_END = timedelta(days=7)

# Rows that a list reads at once, until its page is full.
_READ_AT_ONCE = 200

TO_GET_ONE = "an owner creates one: qmtl token create NAME, or sign in again at the identity provider"
"""What to do without a valid token. (Operators create tokens for themselves only.)"""

TokenState = Literal["good", "revoked", "unknown"]
"""Whether a token with a valid signature may be used."""


def require_good(state: TokenState) -> None:
    """Raise QmtlError (E_TOKEN_REVOKED) where a token is revoked or was never registered."""
    if state != "good":
        raise QmtlError(
            "E_TOKEN_REVOKED",
            "the token has been revoked" if state == "revoked" else "the token is not in the register",
            TO_GET_ONE,
        )


class SqlTokenStore:
    """Stores, lists and revokes tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, token: TokenInfo) -> None:
        """Store a new token of an enabled principal. Idempotent by its id.

        Raises QmtlError: E_PRINCIPAL_UNKNOWN, E_PRINCIPAL_DISABLED; E_TOKEN_REVOKED where its parent is.
        """
        row = TokenRow(
            token_id=token.token_id,
            subject=token.subject,
            grants=canonical_json({world: role.value for world, role in token.grants.items()}).decode(),
            created_by=token.created_by,
            issuers=json.dumps(token.issuers),
            parent_id=token.parent_id,
            created_at=token.created_at.isoformat(),
            expires_at=token.expires_at.isoformat(),
        )
        with self._database.write(token.created_by) as tx:
            require_enabled(tx, token.subject)
            if token.parent_id and tx.session.get_one(TokenRow, token.parent_id).revoked_at is not None:
                require_good("revoked")
            if not tx.insert_new([row]):
                return
            over = (
                col(TokenRow.subject) == token.subject,
                col(TokenRow.expires_at) < utc_before(_KNOWN_AFTER_END),
                col(TokenRow.revoked_at).is_(None),
            )
            tx.connection.execute(delete(TokenRow).where(*over))
            tx.record(
                RecordedChange(
                    "token.created",
                    "",
                    token.subject,
                    after={
                        "token_id": token.token_id,
                        "subject": token.subject,
                        "grants": token.json_dict()["grants"],
                        "expires_at": row.expires_at,
                        "issuers": list(token.issuers),
                    },
                )
            )

    def find(self, token_id: str) -> TokenInfo | None:
        """Read one token; None where there is none with this id."""
        with self._database.read() as session:
            row = session.get(TokenRow, token_id)
            return _info(row) if row else None

    def states(self, token_ids: Iterable[str]) -> dict[str, TokenState]:
        """Read the state of tokens. Every request does so, so that a revoked token is refused at once."""
        requested = list(token_ids)
        with self._database.reserved(), self._database.read() as session:  # every request waits for this
            found = {
                row.token_id: row.revoked_at
                for row in session.connection().execute(_REVOKED_AT, {"token_ids": requested})
            }
        states: dict[str, TokenState] = dict.fromkeys(requested, "unknown")
        for token_id, revoked_at in found.items():
            states[token_id] = "revoked" if revoked_at else "good"
        return states

    def page(
        self, listed: Callable[[TokenInfo], bool], limit: int, after: str | None = None
    ) -> list[TokenInfo]:
        """List up to `limit` of the tokens that `listed` accepts, newest first.

        `after`: the token with which the page before ended. Raises QmtlError (E_TOKEN_UNKNOWN) for another.
        """
        with self._database.read() as session:
            before = _row(session, after) if after is not None else None
            found: list[TokenInfo] = []
            while len(found) < limit and (rows := _older(session, before)):
                found += filter(listed, map(_info, rows))
                before = rows[-1]
            return found[:limit]

    def revoke(self, token_id: str, actor: str) -> TokenInfo:
        """Revoke a token, and those that its person issued to themselves with it, and so on. Idempotent.

        Raises QmtlError (E_TOKEN_UNKNOWN).
        """
        with self._database.write(actor) as tx:
            row = _row(tx.session, token_id)
            lock_principal(tx, row.subject)  # nobody issues another with it meanwhile
            tx.session.refresh(row)
            if row.revoked_at is None:
                at = utc_now()
                for item in _with_own(tx.session, row):
                    item.revoked_at = at
                    tx.session.add(item)
                    after = {"subject": item.subject, "parent_id": item.parent_id}
                    tx.record(RecordedChange("token.revoked", "", item.token_id, after=after))
            return _info(row)

    def revoked(self) -> set[str]:
        """List the ids of the revoked tokens under which a stream may still be open.

        No stream can be requested with an expired token, and none outlives it by more than `MAX_STREAM_S`.
        """
        query = select(TokenRow.token_id).where(
            col(TokenRow.revoked_at).is_not(None), TokenRow.expires_at > utc_before(_MAX_STREAM)
        )
        with self._database.read() as session:
            return set(session.exec(query))


def _row(session: Session, token_id: str) -> TokenRow:
    """Read a token's row. Raises QmtlError (E_TOKEN_UNKNOWN)."""
    row = session.get(TokenRow, token_id)
    if row is None:
        raise QmtlError(
            "E_TOKEN_UNKNOWN", f"there is no token {token_id[:64]!r}", "qmtl token list shows them"
        )
    return row


def _older(session: Session, before: TokenRow | None) -> Sequence[TokenRow]:
    """Read the next tokens that are older than this one, newest first; None: the newest of all."""
    place = tuple_(col(TokenRow.created_at), col(TokenRow.token_id))
    query = select(TokenRow).order_by(col(TokenRow.created_at).desc(), col(TokenRow.token_id).desc())
    if before is not None:
        query = query.where(place < tuple_(literal(before.created_at), literal(before.token_id)))
    return session.exec(query.limit(_READ_AT_ONCE)).all()


def _with_own(session: Session, row: TokenRow) -> list[TokenRow]:
    """List a token, and those that its person issued to themselves with it, with those, and so on."""
    query = select(TokenRow).where(
        TokenRow.subject == row.subject, TokenRow.parent_id != "", col(TokenRow.revoked_at).is_(None)
    )
    issued = defaultdict[str, list[TokenRow]](list)
    for item in session.exec(query):
        issued[item.parent_id].append(item)
    found = [row]
    for item in found:  # it grows
        found += issued[item.token_id]
    return found


def _info(row: TokenRow) -> TokenInfo:
    return TokenInfo(
        token_id=row.token_id,
        subject=row.subject,
        grants={world: Role(role) for world, role in json.loads(row.grants).items()},
        created_by=row.created_by,
        issuers=tuple(json.loads(row.issuers)),
        parent_id=row.parent_id,
        created_at=datetime.fromisoformat(row.created_at),
        expires_at=datetime.fromisoformat(row.expires_at),
        revoked_at=datetime.fromisoformat(row.revoked_at) if row.revoked_at else None,
    )
