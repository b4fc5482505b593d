"""A world: its clock, its data, its costs; and the envelopes in which its decisions travel."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, model_validator

from qmtl_sdk.contracts.domains import DEFAULT_TTL_S
from qmtl_sdk.contracts.durations import Seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.policy import mapping_of, validated

SAMPLE = "sample:"  # a path that names a file that QMTL ships

WorldId = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9_\-]{0,63}$",
        description="lower-case letters, digits, `_` and `-`; at most 64",
    ),
]


def _utc(value: Any) -> Any:
    """YAML hands dates over as `date` or naive `datetime`; a time without a zone is UTC here."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if hasattr(value, "year") and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


UtcTime = Annotated[AwareDatetime, BeforeValidator(_utc), AfterValidator(lambda value: value.astimezone(UTC))]


class Replay(Model):
    """History played as if live: the world's time starts at `start` and runs `speed` times as fast as the wall clock (0: it stands still)."""

    start: UtcTime
    speed: float = Field(1.0, ge=0)


class Clock(Model):
    """`wall` (no replay) or a replay."""

    replay: Replay | None = None

    @property
    def kind(self) -> Literal["wall", "replay"]:
        return "replay" if self.replay else "wall"

    def now(self, created_at: datetime, wall: datetime) -> datetime:
        """The world's time at wall-clock time `wall`, for a world created at `created_at`."""
        if self.replay is None:
            return wall
        return self.replay.start + timedelta(seconds=(wall - created_at).total_seconds() * self.replay.speed)


class Preset(Model):
    """A data set of a world. `streams` maps a stream's name to the tags that choose it.

    `path` is a file, or a pattern with `{stream}`; a file of several streams has a column `symbol` with their names. `sample:NAME` is a file
    that QMTL ships. `source: replay` feeds the bars of a file as they fall due on a replay clock.
    """

    name: str = Field(min_length=1, max_length=64)
    source: Literal["parquet", "csv", "replay"]
    path: str = Field(min_length=1)
    interval: Seconds
    calendar: str = "24/7"
    streams: dict[str, tuple[str, ...]] = Field(min_length=1)
    on_missing: Literal["skip", "fail"] = "skip"
    sectors: dict[str, str] = Field({}, description="the sector of a stream, for policies that cap one")


class Data(Model):
    presets: tuple[Preset, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Data":
        names = [preset.name for preset in self.presets]
        if len(set(names)) < len(names):
            raise ValueError("two presets have the same name")
        return self


class Execution(Model):
    """What a change of position costs, in basis points of the changed notional."""

    fee_bps: float = Field(0.0, ge=0)
    slippage_bps: float = Field(0.0, ge=0)


class CircuitBreaker(Model):
    """Halts the world by itself: above so many accepted orders within a minute, or so many refused ones."""

    max_orders_per_minute: int | None = Field(None, gt=0)
    max_refused_per_minute: int | None = Field(None, gt=0)


class WorldSpec(Model):
    """What a person writes to create a world."""

    world: WorldId
    description: str = Field("", max_length=500)
    clock: Clock = Clock()
    data: Data = Data()
    execution: Execution = Execution()
    allow_live: bool = False
    circuit_breaker: CircuitBreaker = CircuitBreaker()

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
                    f"preset {preset.name} replays, but the world's clock is `wall`; give the world clock: {{replay: {{start: …}}}}"
                )
        return self


class World(Model):
    """A world as the service holds it."""

    spec: WorldSpec
    created_at: UtcTime
    policy_version: int | None = None
    etag: str
    pinned_fingerprint: str = Field("", description="the data that the newest promotion was judged on")
    state: Literal["active", "archived"] = "active"

    def now(self, wall: datetime) -> datetime:
        return self.spec.clock.now(self.created_at, wall)

    def require_active(self) -> None:
        """Raises QmtlError (E_WORLD_ARCHIVED)."""
        if self.state == "archived":
            raise QmtlError(
                "E_WORLD_ARCHIVED",
                f"world {self.spec.world} is archived: it takes no submissions, no applies and no orders",
                "an operator takes it back with: qmtl world archive W --undo",
            )


def parse_world(text: str) -> tuple[WorldSpec, dict[str, Any] | None]:
    """A world from YAML, and its policy's mapping if the text has one. Raises QmtlError (E_WORLD_INVALID)."""
    body = mapping_of(text, "E_WORLD_INVALID", "world", "see docs/worlds.md for an example")
    policy = body.pop("policy", None)
    if policy is not None and not isinstance(policy, dict):
        raise QmtlError(
            "E_POLICY_INVALID", "a policy is a mapping of keys", "see docs/policy.md for an example"
        )
    return validated(WorldSpec, body, "E_WORLD_INVALID", "world"), policy


class Violation(Model):
    """Why a strategy was left out: the step of the decision, the stable kind, the rule and the figure in words."""

    step: Literal["evidence", "data_currency", "gates", "score", "constraints", "topk", "hysteresis"]
    kind: Literal[
        "failed",
        "insufficient",
        "stale",
        "short_history",
        "rejected",
        "correlated",
        "exposed",
        "leveraged",
        "concentrated",
        "outranked",
        "waiting",
        "held",
    ]
    rule: str
    detail: str


class StrategyDecision(OfStrategy):
    """A decision about one strategy. `weight` is its share of the world (0…1), `contribution` weight · annual return."""

    active: bool
    weight: float = Field(0.0, ge=0, le=1)
    side: Literal["long", "short", "both"] = "both"
    rank: int | None = None
    score: float | None = None
    contribution: float | None = None
    violations: tuple[Violation, ...] = ()

    @property
    def explanation(self) -> str:
        """Say in one line why the strategy is active or not."""
        if self.active and not self.violations:
            return f"passed every gate with a score of {self.score:.4g}"
        return "; ".join(f"{violation.rule}: {violation.detail}" for violation in self.violations[:4])


class DecisionEnvelope(Model):
    """One judgment of a world. `as_of` is the world's time of the judgment, `decided_at` the wall clock's; the etag hashes the content alone."""

    world_id: str
    policy_version: int
    effective_mode: str = Field(description="the furthest stage that a strategy of the world has")
    judged_mode: str = Field("validate", description="what this judgment alone lets a passing strategy do")
    reason: str
    as_of: UtcTime
    decided_at: UtcTime
    ttl: int = DEFAULT_TTL_S
    etag: str
    strategies: tuple[StrategyDecision, ...] = ()

    def of(self, strategy_id: str) -> StrategyDecision | None:
        return next((item for item in self.strategies if item.strategy_id == strategy_id), None)


WHOLE_WORLD = "*"
"""The `strategy_id` of an activation that is about the world itself: its epoch, and whether its gate is open."""


class ActivationEnvelope(Model):
    """Whether a strategy is switched on in a world. `freeze` wins over `drain`; either makes it inactive in effect."""

    world_id: str
    strategy_id: str
    side: Literal["long", "short", "both"] = "both"
    active: bool
    weight: float = Field(ge=0, le=1)
    freeze: bool = False
    drain: bool = False
    effective_mode: str | None
    etag: str
    run_id: str
    ts: UtcTime
    stage_since: UtcTime | None = Field(None, description="since when it has been active in this mode")
    epoch: int = 1
    halted: bool = False
    phase: Literal["freeze", "unfreeze", "halt", "resume"] | None = None
    requires_ack: bool = False
    sequence: int = Field(0, description="counts the world's changes of activation")
    state_hash: str = Field("", description="of the world's whole activation after this change")

    @property
    def active_in_effect(self) -> bool:
        return self.active and not self.freeze and not self.drain and not self.halted


class Explanation(Model):
    """Where a strategy stands, step by step, in words."""

    world_id: str
    strategy_id: str
    name: str
    decision: StrategyDecision
    lines: tuple[str, ...]


class BindingInfo(Model):
    """A strategy in a world (WSB)."""

    world_id: str
    strategy_id: str
    name: str
    created_at: UtcTime


class WorldNodeRef(Model):
    """A node of the global graph in a world and domain: what was found of it there. Domains share nothing of this."""

    world_id: str
    node_id: str
    execution_domain: str
    state: Literal["valid", "invalid", "running", "stopped"]
    eval_key: str = Field(
        "", description="of its newest validation: another dataset, contract or code is another validation"
    )
    updated_at: UtcTime


class WorldUpdate(Model):
    """`PATCH /worlds/{id}`: what is given is changed, the rest stays. An archived world takes no submissions, no applies and no orders: its gate is halted, and stays so when it is taken back."""

    description: str | None = Field(None, max_length=500)
    allow_live: bool | None = None
    circuit_breaker: CircuitBreaker | None = None
    data: Data | None = None
    state: Literal["active", "archived"] | None = None


class EdgeOverride(Model):
    """An edge of the world's graph that is closed or opened: between nodes, or between domains (`domain:backtest` → `domain:live`)."""

    src: str = Field(min_length=1, max_length=128)
    dst: str = Field(min_length=1, max_length=128)
    active: bool
    reason: str = Field("", max_length=500)
    updated_at: UtcTime | None = None
