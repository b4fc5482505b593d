"""Whether a person still has a role where no request of theirs shows it: what they left acts for them."""

import json
from collections.abc import Iterable
from datetime import datetime

from sqlmodel import Session, col, select

from activities.storage.tables import PrincipalRow, TokenRow
from activities.storage.transactions import utc_text
from qmtl_sdk.contracts.access import Caller, Role

PROVIDED = "oidc:"
"""How the ids of an identity provider's tokens begin."""

# Tokens of a person that are read at most: each sign-in leaves one, for a week.
_READ = 200


def lacks_role(session: Session, name: str, role: Role, worlds: Iterable[str], now: datetime) -> str:
    """Say why a person has not the role in all these worlds now; empty where they have it.

    Their valid tokens say so. A sign-in at an identity provider counts until the next one, since its token
    ends within the hour. If the newest one is revoked, none does: those before it were over already.
    """
    principal = session.get(PrincipalRow, name)
    if principal is not None and principal.disabled_at is not None:
        return f"{name} was disabled by {principal.disabled_by}"
    query = select(TokenRow).where(TokenRow.subject == name)
    rows = session.exec(query.order_by(col(TokenRow.expires_at).desc()).limit(_READ)).all()
    at = utc_text(now)
    signed_in = [row for row in rows if row.token_id.startswith(PROVIDED)][:1]
    counted = [row for row in rows if row.expires_at > at or row in signed_in]
    good = [_caller(row) for row in counted if row.revoked_at is None]
    for world_id in worlds:
        if not any(caller.may(role, world_id) for caller in good):
            return f"{name} has no valid token with the role {role.value} in {world_id}"
    return ""


def _caller(row: TokenRow) -> Caller:
    grants = {world: Role(role) for world, role in json.loads(row.grants).items()}
    return Caller(subject=row.subject, token_id=row.token_id, grants=grants)
