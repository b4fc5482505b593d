"""Changes of a world's rules that other people approve: a looser policy, live allowed, higher limits."""

from typing import Literal

from qmtl_sdk.contracts.applies import Approval
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.worlds import UtcTime, WorldUpdate

LEADS_TO_LIVE = frozenset({"allow_live", "domains.to live"})
"""What a change loosens that lets a world trade live."""

ChangeState = Literal["waiting", "made", "rejected", "expired", "outdated"]
"""`outdated`: the rules have changed since it was requested."""


class RuleChange(Model):
    """One of: a new policy version, another default version, new values in the world's spec."""

    policy: Policy | None = None
    default_version: int | None = None
    world: WorldUpdate | None = None

    @property
    def title(self) -> str:
        """Name the change in a few words."""
        if self.policy is not None:
            return "a new policy version"
        if self.default_version is not None:
            return f"policy version {self.default_version} as the default"
        given = self.world.model_dump(exclude_none=True) if self.world else {}
        return f"the world's {', '.join(given)}"


class ChangeStatus(Model):
    """A change that waits for approvals, or did. `loosens` says what it takes back of the rules in force."""

    world_id: str
    change_id: str
    title: str
    loosens: tuple[str, ...]
    required: int
    state: ChangeState
    requested_by: str
    requested_at: UtcTime
    expires_at: UtcTime
    approvals: tuple[Approval, ...] = ()

    @property
    def leads_to_live(self) -> bool:
        """Whether its approval leads to live trading."""
        return not LEADS_TO_LIVE.isdisjoint(self.loosens)
