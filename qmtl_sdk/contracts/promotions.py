"""A promotion: brings one strategy to dryrun or live, stage by stage, when the conditions of each are met."""

from typing import Literal

from pydantic import Field

from qmtl_sdk.contracts.domains import Mode
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime


class PromotionRequest(Model):
    """`POST /worlds/{id}/promotions`.

    `strategy`: its name, its strategy_id, or the beginning of the id. `to`: the last stage to bring it to.
    """

    strategy: PlainLine = Field(min_length=1, max_length=128)
    to: Literal["dryrun", "live"] = "dryrun"
    reason: PlainLine = Field("", max_length=500)


class Condition(Model):
    """A condition of the policy on the next stage.

    `due`: when it will be met by time alone, if it is not met yet.
    """

    name: str
    met: bool
    detail: str
    due: UtcTime | None = None


class PromotionProgress(OfStrategy):
    """How far a promotion is.

    `stage`: the strategy's mode, `off` if it is not active. `target`: the next mode, empty at the last one.
    """

    stage: Mode | Literal["off"]
    target: Mode | Literal[""]
    conditions: tuple[Condition, ...] = ()

    @property
    def unmet(self) -> tuple[Condition, ...]:
        """The conditions that are not met."""
        return tuple(condition for condition in self.conditions if not condition.met)


class PromotionView(Model):
    """A promotion as its workflow reports it (query `gate`).

    `apply_run`: the apply that is running for it.
    """

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
