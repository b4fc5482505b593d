"""Who may do what: four roles, each with all that the ones before it may, granted for a world or for all."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime

EVERY_WORLD = "*"


class Role(StrEnum):
    READER = "reader"
    AUTHOR = "author"
    OPERATOR = "operator"
    OWNER = "owner"

    def covers(self, other: "Role") -> bool:
        return _RANK[self] >= _RANK[other]


_RANK = {role: rank for rank, role in enumerate(Role)}
Grants = Annotated[dict[str, Role], Field(min_length=1, max_length=100)]


class Caller(Model):
    """Who speaks: the name that the audit trail gets, and their role by world (`*`: in every world)."""

    subject: str
    token_id: str
    grants: dict[str, Role]

    def role_in(self, world_id: str) -> Role | None:
        """The higher of what is granted for the world and for all."""
        found = [self.grants[name] for name in (world_id, EVERY_WORLD) if name in self.grants]
        return max(found, key=_RANK.__getitem__, default=None)

    def may(self, role: Role, world_id: str) -> bool:
        mine = self.role_in(world_id)
        return mine is not None and mine.covers(role)

    @property
    def highest(self) -> Role | None:
        return max(self.grants.values(), key=_RANK.__getitem__, default=None)

    def covers(self, grants: dict[str, Role]) -> bool:
        """Whether these grants give nothing that the caller does not have."""
        return all(self.may(role, world) for world, role in grants.items())


def visible(caller: Caller, worlds: Iterable[str]) -> list[str]:
    """The worlds that a caller may read."""
    return [world for world in worlds if caller.may(Role.READER, world)]


class TokenRequest(Model):
    """`POST /tokens`. No one grants more than they have."""

    subject: str = Field(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9._@-]+$",
        description="the name that the audit trail gets",
    )
    grants: Grants
    expires_in_s: int = Field(30 * 86_400, gt=0, le=366 * 86_400)


class TokenInfo(Model):
    """A token as it is listed: all but its secret part."""

    token_id: str
    subject: str
    grants: dict[str, Role]
    created_by: str
    created_at: UtcTime
    expires_at: UtcTime
    revoked_at: UtcTime | None = None


class NewToken(Model):
    """Shown once."""

    token: str
    info: TokenInfo
