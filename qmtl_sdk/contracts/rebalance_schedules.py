"""Schedules of rebalancings: at each firing shares are proposed, and a run is requested where they differ.

A firing changes no share by itself. Its run waits for approvals like any other.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from qmtl_sdk.contracts.allocations import Share, ShareMethod
from qmtl_sdk.contracts.amounts import exact_sum
from qmtl_sdk.contracts.durations import Seconds, format_duration
from qmtl_sdk.contracts.model import Model, sort_by
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime, WorldId

MAX_SCHEDULES = 100
"""Schedules of rebalancings in a store."""

MAX_WORLD_SCHEDULES = 10
"""Schedules that contain the same world."""

MAX_SCHEDULED_WORLDS = 100
"""Worlds of a schedule."""

MIN_EVERY_S = 3600
"""Seconds between two firings, at least: people have to approve what they request."""

MAX_EVERY_S = 366 * 86_400
"""Seconds between two firings, at most."""

_NAME = r"^[a-z0-9][a-z0-9-]*$"


def _schedule_name(value: object) -> object:
    """Say in words what a name may have. Raises ValueError."""
    if isinstance(value, str) and not re.search(_NAME, value):
        raise ValueError("write a name with lower-case letters, digits and -, which does not begin with -")
    return value


def _frequent(every: int) -> int:
    """Say in words how often a schedule may fire. Raises ValueError."""
    if not MIN_EVERY_S <= every <= MAX_EVERY_S:
        least, most = format_duration(MIN_EVERY_S), format_duration(MAX_EVERY_S)
        raise ValueError(f"write at least {least} and at most {most}")
    return every


ScheduleName = Annotated[
    str, Field(min_length=1, max_length=48, pattern=_NAME), BeforeValidator(_schedule_name)
]
"""The name of a schedule."""

FiringOutcome = Literal["requested", "unchanged", "skipped", "refused", "failed"]
"""What a firing decided. `unchanged`: no share differs by more than the tolerance. `refused`: by a rule."""


class ScheduledWorld(Model):
    """A world of a schedule: `target` and `width` of its band, or the share that it is given."""

    world_id: WorldId
    target: Share | None = None
    width: Share | None = None


class RebalanceScheduleBody(Model):
    """`PUT /rebalancing/schedules/{name}`: when shares are proposed, of which worlds, and how.

    `given` needs a `target` for each world, `drift_bands` a `width` as well, `equal_risk` neither. `cap`: the
    largest share that `drift_bands` and `equal_risk` propose, 1 without it; a world that keeps its share may
    be above it. `tolerance`: a run is requested where a share differs by more. `every`: seconds between two
    firings, counted from midnight UTC of 1 January 1970.
    """

    method: ShareMethod
    worlds: Annotated[
        tuple[ScheduledWorld, ...],
        Field(min_length=1, max_length=MAX_SCHEDULED_WORLDS),
        sort_by(lambda item: item.world_id),
    ]
    cap: Annotated[Share, Field(gt=0)] | None = None
    tolerance: Share = Decimal("0.01")
    every: Annotated[Seconds, AfterValidator(_frequent), Field(ge=MIN_EVERY_S, le=MAX_EVERY_S)] = 86_400
    paused: bool = False
    reason: PlainLine = Field("", max_length=200)

    @property
    def world_ids(self) -> tuple[str, ...]:
        """The names of the worlds, sorted."""
        return tuple(item.world_id for item in self.worlds)

    @property
    def largest(self) -> Decimal:
        """The largest share that may be proposed."""
        return Decimal(1) if self.cap is None else self.cap

    def next_firing(self, now: datetime) -> datetime:
        """Return the first time after `now` at which it fires, unless it is paused."""
        begun = datetime(1970, 1, 1, tzinfo=UTC)
        every = timedelta(seconds=self.every)
        return begun + ((now - begun) // every + 1) * every

    @model_validator(mode="after")
    def _worlds_are_described(self) -> Self:
        if len(set(self.world_ids)) < len(self.worlds):
            raise ValueError("a world is named twice")
        if self.method == "given" and self.cap is not None:
            raise ValueError("the method given takes no cap: its shares are proposed as they are")
        needed = _NEEDED[self.method]
        for item in self.worlds:
            given = {name for name in ("target", "width") if getattr(item, name) is not None}
            if given != needed:
                raise ValueError(f"{item.world_id}: the method {self.method} {_TAKES[self.method]}")
        total = exact_sum(item.target or Decimal(0) for item in self.worlds)
        if total > 1:
            raise ValueError(f"the targets of the worlds add up to {total:f}; they may add up to 1 at most")
        return self


_NEEDED: dict[str, set[str]] = {"given": {"target"}, "drift_bands": {"target", "width"}, "equal_risk": set()}

_TAKES = {
    "given": "takes a target alone: WORLD=0.3",
    "drift_bands": "takes a target and a width: WORLD=0.3:0.05",
    "equal_risk": "takes neither target nor width: WORLD",
}


class ProposedShare(Model):
    """What a firing proposed for a world: its share, another one, and why."""

    world_id: str
    before: Decimal
    after: Decimal
    why: str = ""


class Firing(Model):
    """What a firing of a schedule decided. `at`: when it fired. `run_id`: of the run that it requested."""

    at: UtcTime
    outcome: FiringOutcome
    reason: str = ""
    shares: tuple[ProposedShare, ...] = ()
    run_id: str = ""


class RebalanceSchedule(Model):
    """A schedule as it is stored. Its runs are requested by `set_by`, who cannot approve them.

    `is_running`: Temporal has it as it is here; if not, it will soon.
    """

    name: ScheduleName
    body: RebalanceScheduleBody
    set_by: str
    set_at: UtcTime
    is_running: bool
    newest: Firing | None = None
