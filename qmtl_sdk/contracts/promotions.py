"""A promotion: one strategy on its way to dryrun or live, stage by stage, as its conditions come to hold."""

from typing import Literal

from pydantic import Field

from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.worlds import UtcTime


class PromotionRequest(Model):
    """`POST /worlds/{id}/promotions`. `strategy` is its name, its strategy_id, or the beginning of that; `to`: how far it shall come."""

    strategy: str = Field(min_length=1, max_length=128)
    to: Literal["dryrun", "live"] = "dryrun"
    reason: str = Field("", max_length=500)


class Condition(Model):
    """What the policy asks for before the next stage. `due`: when it will hold by time alone, where it does not yet."""

    name: str
    met: bool
    detail: str
    due: UtcTime | None = None


class PromotionProgress(OfStrategy):
    """Where a strategy stands on its way. `stage`: the mode that it has; `target`: the next one, empty where it has come as far as it shall."""

    stage: str
    target: str
    conditions: tuple[Condition, ...] = ()

    @property
    def unmet(self) -> tuple[Condition, ...]:
        return tuple(condition for condition in self.conditions if not condition.met)


class PromotionView(Model):
    """A promotion as its workflow has it (the query `gate`). `apply_run`: the apply that is under way for it."""

    world_id: str
    strategy_id: str
    to: Literal["dryrun", "live"]
    requested_by: str
    reason: str = ""
    progress: PromotionProgress | None = None
    apply_run: str = ""
    waits_for: str = ""
    outcome: Literal["", "completed", "stopped"] = ""
    workflow_url: str = ""
