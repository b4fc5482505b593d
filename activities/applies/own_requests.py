"""Nobody approves their own request: neither who made it, nor who had a hand in their token or name."""

import json
from collections.abc import Sequence

from sqlmodel import Session

from activities.storage.tables import PrincipalRow, TokenRow
from activities.storage.transactions import Transaction
from qmtl_sdk.contracts.errors import QmtlError


def issuers_of(session: Session, token_id: str) -> list[str]:
    """Return everybody who issued a token, or theirs; empty for no token."""
    token = session.get(TokenRow, token_id) if token_id else None
    return list(json.loads(token.issuers)) if token else []


def _registrars_of(session: Session, name: str) -> set[str]:
    """Return who registered a principal, who registered them, and so on."""
    found: set[str] = set()
    while (row := session.get(PrincipalRow, name)) is not None and row.created_by not in found:
        name = row.created_by
        found.add(name)
    return found


def require_another_person(
    tx: Transaction,
    subject: str,
    requested_by: str,
    requested_issuers: Sequence[str],
    actor: str,
    token_id: str,
) -> None:
    """Check that `actor`, with this token, is another person than who requested `subject`.

    Raises QmtlError (E_APPROVAL_OWN).
    """
    if actor.casefold() == requested_by.casefold():
        raise QmtlError(
            "E_APPROVAL_OWN",
            f"{actor} requested {subject}, and nobody approves their own request",
            "another person approves it (on this machine, to try it: --as ana)",
        )
    if requested_by in issuers_of(tx.session, token_id):
        raise QmtlError(
            "E_APPROVAL_OWN",
            f"{requested_by} requested {subject}, and issued the token of this approval, or one before it",
            "another person approves it, or with a token that somebody else issued",
        )
    if actor in requested_issuers:
        raise QmtlError(
            "E_APPROVAL_OWN",
            f"{actor} issued the token with which {subject} was requested, or one that it came from",
            "another person approves it, who had no hand in that token",
        )
    for one, other in ((requested_by, actor), (actor, requested_by)):
        if one in _registrars_of(tx.session, other):
            raise QmtlError(
                "E_APPROVAL_OWN",
                f"{one} registered {other}, or who registered them: for {subject} they count as one person",
                "another person approves it, who was registered by somebody else",
            )
