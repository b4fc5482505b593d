"""Access: four roles, each including the ones before it, granted for one world or for all worlds."""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.texts import PlainLine, printable
from qmtl_sdk.contracts.worlds import UtcTime

EVERY_WORLD = "*"
"""The name under which a role is granted for all worlds."""


class Role(StrEnum):
    """What a caller may do, in ascending order."""

    READER = "reader"
    AUTHOR = "author"
    OPERATOR = "operator"
    OWNER = "owner"

    def covers(self, other: "Role") -> bool:
        """Return whether this role includes `other`."""
        return _RANK[self] >= _RANK[other]


_RANK = {role: rank for rank, role in enumerate(Role)}


def higher(one: Role, other: Role) -> Role:
    """Return the higher of two roles."""
    return one if one.covers(other) else other


Grants = Annotated[
    dict[Annotated[PlainLine, Field(min_length=1, max_length=64)], Role], Field(min_length=1, max_length=100)
]


class Caller(Model):
    """The caller of a request: their name in the audit trail, and their role by world (`*`: every world)."""

    subject: str
    token_id: str
    grants: dict[str, Role]

    def role_in(self, world_id: str) -> Role | None:
        """Return the higher of the roles in this world and in every world; None without one."""
        found = [self.grants[name] for name in (world_id, EVERY_WORLD) if name in self.grants]
        return max(found, key=_RANK.__getitem__, default=None)

    def may(self, role: Role, world_id: str) -> bool:
        """Return whether the caller has `role` in the world."""
        own = self.role_in(world_id)
        return own is not None and own.covers(role)

    def require_role(self, world_id: str, role: Role) -> None:
        """Require a role in a world.

        Raises QmtlError: E_WORLD_FORBIDDEN where the caller has no role there, E_ROLE where it is too low.
        """
        mine = self.role_in(world_id)
        if mine is None:
            raise QmtlError(
                "E_WORLD_FORBIDDEN",
                f"{self.subject} has no role in world {world_id[:64]}",
                f"an owner creates a token for it: qmtl token create NAME --world {world_id[:64]}",
            )
        if not mine.covers(role):
            raise QmtlError(
                "E_ROLE",
                f"this needs the role {role.value} in world {world_id[:64]}; "
                f"{self.subject} has {mine.value} there",
                "ask someone with that role, or for a token with it",
            )

    @property
    def highest(self) -> Role | None:
        """The highest role in any world."""
        return max(self.grants.values(), key=_RANK.__getitem__, default=None)

    def covers(self, grants: dict[str, Role]) -> bool:
        """Return whether the caller has every role in `grants`."""
        return all(self.may(role, world) for world, role in grants.items())


def visible(caller: Caller, worlds: Iterable[str]) -> list[str]:
    """Return the worlds that the caller may read."""
    return [world for world in worlds if caller.may(Role.READER, world)]


RESERVED = frozenset(
    {
        "apply",
        "evaluation",
        "fence",
        "flatten",
        "gateway",
        "qmtl",
        "rebalancing",
        "relay",
        "router",
        "session",
        "sessions",
        "submission",
        "supervisor",
        "system",
        "temporal",
        "upkeep",
        "venue",
        "worker",
    }
)
"""Names under which QMTL itself acts in the audit trail. No person has one of them, in any case."""

_PRINCIPAL_PATTERN = r"^[A-Za-z0-9._@-]{1,64}$"

PrincipalName = Annotated[str, Field(min_length=1, max_length=64, pattern=_PRINCIPAL_PATTERN)]
"""The name of a principal in the audit trail."""


def require_principal_name(name: str) -> None:
    """Raise QmtlError (E_PRINCIPAL_UNKNOWN) where no principal can have this name."""
    if not re.fullmatch(_PRINCIPAL_PATTERN, name) or name.casefold() in RESERVED:
        raise QmtlError(
            "E_PRINCIPAL_UNKNOWN",
            f"{printable(name, 64)} can't be the name of a principal",
            "set auth.oidc.subject_claim to a claim of letters, digits and . _ @ - that is no reserved name",
        )


def require_free(name: str) -> None:
    """Raise QmtlError (E_PRINCIPAL_RESERVED) where QMTL itself acts under this name."""
    if name.casefold() in RESERVED:
        raise QmtlError(
            "E_PRINCIPAL_RESERVED", f"{name} is a name under which QMTL itself acts", "choose another name"
        )


def principal_of(user: str) -> str:
    """Return the principal of a user of this machine, whose name may have any characters."""
    name = re.sub(r"[^A-Za-z0-9._@-]", "_", user)[:64] or "user"
    return f"{name[:58]}@local" if name.casefold() in RESERVED else name


class PrincipalRequest(Model):
    """`POST /principals`: who is registered."""

    name: PrincipalName


class Principal(Model):
    """Someone who may have tokens: a person, or their program. A disabled one has no valid token."""

    name: str
    created_by: str
    created_at: UtcTime
    disabled_by: str = ""
    disabled_at: UtcTime | None = None


class TokenRequest(Model):
    """`POST /tokens`. Callers grant at most their own roles. `expires_in_s`: seconds, by default 30 days."""

    subject: PrincipalName
    grants: Grants
    expires_in_s: int = Field(30 * 86_400, gt=0, le=366 * 86_400)


class TokenInfo(Model):
    """A token as it is listed, without its secret part.

    `issuers`: everybody through whose hands it came: who issued the token, who issued theirs, and so on.
    Their requests are not approved with it. `parent_id`: of the token with which a person issued it to
    themselves, whose end is its end; empty for any other.
    """

    token_id: str
    subject: str
    grants: dict[str, Role]
    created_by: str
    issuers: tuple[str, ...]
    parent_id: str = ""
    created_at: UtcTime
    expires_at: UtcTime
    revoked_at: UtcTime | None = None


class NewToken(Model):
    """A new token with its secret, which is shown once."""

    token: str
    info: TokenInfo
