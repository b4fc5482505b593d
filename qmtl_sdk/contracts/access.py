"""Access: four roles, each including the ones before it, granted for one world or for all worlds."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.texts import PlainLine
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


class TokenRequest(Model):
    """`POST /tokens`. Callers grant at most their own roles. `expires_in_s`: seconds, by default 30 days."""

    subject: str = Field(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9._@-]+$",
        description="the name in the audit trail",
    )
    grants: Grants
    expires_in_s: int = Field(30 * 86_400, gt=0, le=366 * 86_400)


class TokenInfo(Model):
    """A token as it is listed, without its secret part."""

    token_id: str
    subject: str
    grants: dict[str, Role]
    created_by: str
    created_at: UtcTime
    expires_at: UtcTime
    revoked_at: UtcTime | None = None


class NewToken(Model):
    """A new token with its secret, which is shown once."""

    token: str
    info: TokenInfo
