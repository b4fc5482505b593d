"""Worlds: clock, data and costs, and the records that belong to them."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, model_validator

from qmtl_sdk.contracts.amounts import Amount
from qmtl_sdk.contracts.capital import DEFAULT_LOT, Capital
from qmtl_sdk.contracts.documents import mapping_of, validated
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.durations import Seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fees import PaperFills
from qmtl_sdk.contracts.instruments import InstrumentConstraints
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.position_limits import PositionLimits, TotalLimits
from qmtl_sdk.contracts.registry import Options
from qmtl_sdk.contracts.texts import PlainLine

SAMPLE = "sample:"
"""The start of a path that names a file which QMTL ships."""

WorldId = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9_\-]{0,63}$",
        description="lower-case letters, digits, `_` and `-`; at most 64",
    ),
]
"""The name of a world."""


_MAX_TIME_TEXT = 64  # characters

FIRST_TIME = datetime(1700, 1, 1, tzinfo=UTC)
LAST_TIME = datetime(2200, 1, 1, tzinfo=UTC)
"""Times lie between these: nanoseconds since 1970 are kept in 64 bits, with room for windows around them."""


def _utc(value: Any) -> Any:
    """Read a time without a zone as UTC. YAML yields dates and naive times. (Any: whatever was written.)"""
    if isinstance(value, str):
        value = datetime.fromisoformat(value[:_MAX_TIME_TEXT])
    if hasattr(value, "year") and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def _in_range(value: datetime) -> datetime:
    """Return the time in UTC. Raises ValueError for one that nanoseconds of 64 bits cannot hold."""
    if not FIRST_TIME.year <= value.year < LAST_TIME.year:
        raise ValueError(f"a time is between {FIRST_TIME.year} and {LAST_TIME.year - 1}")
    return value.astimezone(UTC)


UtcTime = Annotated[AwareDatetime, BeforeValidator(_utc), AfterValidator(_in_range)]
"""A time with a zone, converted to UTC, that nanoseconds since 1970 can hold."""


class Replay(Model):
    """History played as if it were live.

    The world's time starts at `start` and runs `speed` times as fast as the wall clock; 0 stops it.
    """

    start: UtcTime
    speed: float = Field(1.0, ge=0, le=1e9)


class Clock(Model):
    """The wall clock, or a replay."""

    replay: Replay | None = None

    @property
    def kind(self) -> Literal["wall", "replay"]:
        return "replay" if self.replay else "wall"

    def now(self, created_at: datetime, wall: datetime) -> datetime:
        """Return the world's time at wall-clock time `wall`, for a world created at `created_at`.

        A replay stops at `LAST_TIME`, however fast it runs.
        """
        if self.replay is None:
            return wall
        passed_s = (wall - created_at).total_seconds() * self.replay.speed
        left_s = (LAST_TIME - self.replay.start).total_seconds()
        return self.replay.start + timedelta(seconds=min(passed_s, left_s))


MAX_PRESETS = 100
"""Data sets of a world."""

MAX_STREAMS = 5000
"""Streams of a data set."""

_Symbol = Annotated[PlainLine, Field(min_length=1, max_length=64)]
_Labels = Annotated[tuple[_Symbol, ...], Field(max_length=16)]


class Preset(Model):
    """A data set of a world. `streams` maps a stream's name to the tags that select it.

    `path` is a file, or a pattern with `{stream}`; a file with several streams has a column `symbol` with
    their names. `sample:NAME` is a file that QMTL ships. `source: replay` feeds the bars of a file when they
    are due on a replay clock. `interval` is in seconds.
    """

    name: PlainLine = Field(min_length=1, max_length=64)
    source: PlainLine = Field(
        min_length=1, max_length=64, description="a built-in source, or one of a package"
    )
    path: PlainLine = Field("", max_length=1024)
    interval: Seconds
    calendar: PlainLine = Field("24/7", max_length=64)
    streams: dict[_Symbol, _Labels] = Field(min_length=1, max_length=MAX_STREAMS)
    on_missing: Literal["skip", "fail"] = "skip"
    sectors: dict[_Symbol, _Symbol] = Field(
        {}, max_length=MAX_STREAMS, description="the sector of a stream, for policies that cap one"
    )
    options: Options = Field({}, description="for sources of packages")

    @model_validator(mode="after")
    def _files_need_a_path(self) -> "Preset":
        if self.source in ("parquet", "csv", "replay") and not self.path:
            raise ValueError(f"source {self.source} needs a path")
        return self


class Data(Model):
    """The data sets of a world."""

    presets: tuple[Preset, ...] = Field((), max_length=MAX_PRESETS)

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Data":
        names = [preset.name for preset in self.presets]
        if len(set(names)) < len(names):
            raise ValueError("two presets have the same name")
        return self


class Execution(PaperFills):
    """Costs of a change of position, in basis points of the changed notional, and how paper orders fill."""

    fee_bps: float = Field(0.0, ge=0, lt=10_000)
    slippage_bps: float = Field(0.0, ge=0, lt=10_000)


OnHalt = Literal["cancel", "leave"]
"""What a halt does to the orders that are open at a venue."""


class CircuitBreaker(Model):
    """Limits on accepted and on refused orders within a minute; above one, the world is halted."""

    max_orders_per_minute: int | None = Field(None, gt=0, lt=2**31)
    max_refused_per_minute: int | None = Field(None, gt=0, lt=2**31)


class OrderLimits(Model):
    """Limits on the orders and positions of a world, which the fence checks. None: no limit."""

    symbols: tuple[_Symbol, ...] | None = Field(
        None, max_length=1000, description="the only symbols that may be ordered"
    )
    max_quantity: Amount | None = None
    max_notional: Amount | None = Field(
        None, description="of quantity times price; an order without a price is refused"
    )
    prices: dict[_Symbol, Amount] = Field(
        {}, max_length=1000, description="prices of symbols that their account has never traded"
    )
    strategy: PositionLimits = Field(PositionLimits(), description="of each strategy")
    world: TotalLimits = Field(TotalLimits(), description="of all its strategies together")


class WorldSpec(Model):
    """What a person writes to create a world."""

    world: WorldId
    description: PlainLine = Field("", max_length=500)
    clock: Clock = Clock()
    data: Data = Data()
    execution: Execution = Execution()
    allow_live: bool = False
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    order_limits: OrderLimits = OrderLimits()
    on_halt: OnHalt = Field("cancel", description="what a halt does to open orders at a venue")
    capital: Capital | None = Field(
        None, description="the money that its strategies trade with, each with its weight of it"
    )
    instruments: InstrumentConstraints = Field(
        InstrumentConstraints(lot=DEFAULT_LOT), description="lots and limits of what is ordered for targets"
    )

    @model_validator(mode="before")
    @classmethod
    def _clock_word(cls, body: Any) -> Any:
        if isinstance(body, dict) and body.get("clock") == "wall":
            return {**body, "clock": {}}
        return body

    @model_validator(mode="after")
    def _replay_needs_its_clock(self) -> "WorldSpec":
        for preset in self.data.presets:
            if preset.source == "replay" and self.clock.replay is None:
                raise ValueError(
                    f"preset {preset.name} replays, but the world's clock is `wall`; "
                    "write clock: {replay: {start: …}}"
                )
        return self


class World(Model):
    """A world as it is stored."""

    spec: WorldSpec
    created_at: UtcTime
    policy_version: int | None = None
    etag: str
    pinned_fingerprint: str = Field("", description="of the data that the newest promotion was judged on")
    state: Literal["active", "archived"] = "active"

    def now(self, wall: datetime) -> datetime:
        """Return the world's time at wall-clock time `wall`."""
        return self.spec.clock.now(self.created_at, wall)

    def require_active(self) -> None:
        """Raise QmtlError (E_WORLD_ARCHIVED) if the world is archived."""
        if self.state == "archived":
            raise QmtlError(
                "E_WORLD_ARCHIVED",
                f"world {self.spec.world} is archived: it takes no submissions, applies or orders",
                "an operator restores it with: qmtl world archive W --undo",
            )


def parse_world(text: str) -> tuple[WorldSpec, dict[str, Any] | None]:
    """Return a world from YAML, and its policy's mapping if there is one.

    Raises QmtlError: E_WORLD_INVALID, E_POLICY_INVALID.
    """
    body = mapping_of(text, "E_WORLD_INVALID", "world", "see docs/worlds.md for an example")
    policy = body.pop("policy", None)
    if policy is not None and not isinstance(policy, dict):
        raise QmtlError(
            "E_POLICY_INVALID", "a policy is a mapping of keys", "see docs/policy.md for an example"
        )
    return validated(WorldSpec, body, "E_WORLD_INVALID", "world"), policy


class BindingInfo(Model):
    """A strategy that was submitted to a world, and when."""

    world_id: str
    strategy_id: str
    name: str
    created_at: UtcTime


class WorldNodeRef(Model):
    """A node of the global graph in a world and domain, with its validation there.

    Domains share no validation.
    """

    world_id: str
    node_id: str
    execution_domain: Domain
    state: Literal["valid", "invalid", "running", "stopped"]
    eval_key: str = Field(
        "", description="of the newest validation; it changes with dataset, contract and code"
    )
    updated_at: UtcTime


class WorldUpdate(Model):
    """`PATCH /worlds/{id}`: changes the given fields only.

    An archived world takes no submissions, applies or orders. Its fence is halted, and stays halted when the
    world is active again.
    """

    description: PlainLine | None = Field(None, max_length=500)
    allow_live: bool | None = None
    circuit_breaker: CircuitBreaker | None = None
    order_limits: OrderLimits | None = None
    on_halt: OnHalt | None = None
    capital: Capital | None = None
    instruments: InstrumentConstraints | None = None
    data: Data | None = None
    state: Literal["active", "archived"] | None = None
