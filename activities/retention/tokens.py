"""Which revoked tokens retention archives: a revocation matters until its token would have ended by itself.

Then the token is refused by its end, and no longer needs a row. Two kinds stay, however old they are, since
what a person left acts by them (`activities/rebalancing/firings.py`): the token with which a schedule was
set, and the newest sign-in of a person at an identity provider. Else a revoked right would be theirs again.
"""

from sqlalchemy import Select, exists, select

from activities.access.present_roles import PROVIDED
from activities.retention.ages import Ages
from activities.retention.rule import Part, Rule
from activities.storage.tables import RebalancingScheduleRow, TokenRow
from activities.storage.transactions import table_of

_token = table_of(TokenRow)
_schedule = table_of(RebalancingScheduleRow)


def _ended(ages: Ages) -> "Select[tuple[object, ...]]":
    later = _token.alias()
    newer_sign_in = exists().where(
        later.c.subject == _token.c.subject,
        later.c.expires_at > _token.c.expires_at,
        later.c.token_id.startswith(PROVIDED),
    )
    return (
        select(_token.c.token_id, _token.c.expires_at.label("at"))
        .where(
            _token.c.revoked_at.is_not(None),
            _token.c.expires_at < ages.cutoff,
            ~exists().where(_schedule.c.token_id == _token.c.token_id),
            ~_token.c.token_id.startswith(PROVIDED) | newer_sign_in,
        )
        .order_by(_token.c.expires_at)
    )


REVOKED_TOKENS = Rule(
    "revoked tokens", lambda kept: kept.revoked_tokens_days, _ended, (Part(_token, ("token_id",)),)
)
