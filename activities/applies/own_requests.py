"""Nobody approves their own request: neither who made it, nor who had a hand in a token of theirs."""

import json
from collections.abc import Sequence

from sqlmodel import Session

from activities.storage.tables import TokenRow
from activities.storage.transactions import Transaction
from qmtl_sdk.contracts.errors import QmtlError


def issuers_of(session: Session, token_id: str) -> list[str]:
    """Return everybody who issued a token, or theirs; empty for no token."""
    token = session.get(TokenRow, token_id) if token_id else None
    return list(json.loads(token.issuers)) if token else []


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
    if actor == requested_by:
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
