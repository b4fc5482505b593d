"""The people of a local stack: who started it, and in the profile `dev` two more."""

from activities.settings import local_user
from api.auth.keys import write_secret
from api.auth.tokens import SYSTEM
from api.state import GatewayState
from qmtl_sdk.contracts.access import Role, principal_of

DEMO_PEOPLE = ("ana", "ben")
"""Two operators of a local stack, besides the person who started it."""


def write_local_tokens(state: GatewayState) -> None:
    """Write tokens for the person who starts the Gateway, in files that only they can read.

    `operator` is for daily work, `owner` for keys and for what operators may not revoke. With the profile
    `dev` there are two more people, so that one person can try what takes two (`--as ana`).
    """
    user = principal_of(local_user())
    people = {"operator": (user, Role.OPERATOR), "owner": (user, Role.OWNER)}
    if state.config.profile == "dev":
        people |= {name: (name, Role.OPERATOR) for name in DEMO_PEOPLE}
    for name, (subject, role) in people.items():
        path = state.config.local_token_path(name)
        current = path.read_text().strip() if path.exists() else None
        state.stores.principals.add_if_new(subject, SYSTEM)
        token = state.tokens.issue_local(role, subject, current)
        if token is not None:
            write_secret(path, token)
