"""Events: what changed in a world, as CloudEvents 1.0 on topics.

A topic is `{world_id}.{kind}`, with `_` for events that belong to no world. Each topic numbers its events 1,
2, 3 … (`topic_state`); a stream carries them to clients (`stream`).
"""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from qmtl_sdk.contracts.applies import ApplyState
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.rebalance_runs import RebalanceState
from qmtl_sdk.contracts.worlds import UtcTime

NO_WORLD = "_"
"""The world part of a topic whose events belong to no world."""

KINDS = (
    "activation",
    "decisions",
    "policy",
    "queues",
    "sessions",
    "submissions",
    "worlds",
    "applies",
    "rebalancing",
    "other",
)
"""The kinds of topics."""

SUBSCRIBED = ("activation", "decisions", "policy", "queues")
"""The kinds that a running strategy subscribes to by default."""

_ENDS = {"session.ended"}  # types of events after which their subject no longer exists

_KIND_OF = {
    "activation_updated": "activation",
    "decision_updated": "decisions",
    "policy_updated": "policy",
    "queue_updated": "queues",
    "queue_lifecycle": "queues",
    "tagquery.upsert": "queues",
    "sentinel_weight": "queues",
}
"""The kind of topic of an event type."""

_KIND_OF_PREFIX = {
    "apply": "applies",
    "approval": "applies",
    "promotion": "applies",
    "rebalancing": "rebalancing",
    "session": "sessions",
    "submission": "submissions",
    "run": "submissions",
    "evidence": "submissions",
    "world": "worlds",
    "store": "worlds",
    "token": "worlds",
}
"""The kind of topic of every event type that starts with this word and a dot."""

MAX_SUBJECT = 1_100
"""Characters of an event's subject: the longest is made of a tag query's domain, interval and tags."""

MAX_TYPE = 128
"""Characters of an event's type."""

MAX_DATA = 4 * 2**20
"""Characters of an event's data as JSON. The largest events list all strategies or all queues of a world."""

UNREADABLE = "unreadable"
"""The type of the event that stands for one which this version cannot read."""


def kind_of(event_type: str) -> str:
    """Return the kind of topic that an event type belongs to; `other` for an unknown type."""
    return _KIND_OF.get(event_type) or _KIND_OF_PREFIX.get(event_type.partition(".")[0], "other")


def topic_of(world_id: str, event_type: str) -> str:
    """Return the topic of an event; `world_id` is empty for an event that belongs to no world."""
    return f"{world_id or NO_WORLD}.{kind_of(event_type)}"


class CloudEvent(Model):
    """A CloudEvents 1.0 event in JSON format.

    `idempotencykey` is the same each time that the event is sent. Events of one `partitionkey` keep their
    order. An event without `data` says that its subject no longer exists.
    """

    model_config = ConfigDict(frozen=True, extra="allow")  # CloudEvents allows extension attributes

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1, max_length=128)
    source: str = Field(min_length=1, max_length=256)
    type: str = Field(min_length=1, max_length=MAX_TYPE)
    subject: str = Field(min_length=1, max_length=MAX_SUBJECT)
    time: UtcTime
    datacontenttype: Literal["application/json"] = "application/json"
    dataschema: str = ""
    worldid: str = ""
    partitionkey: str = ""
    idempotencykey: str = Field(min_length=1, max_length=128)
    data: dict[str, Any] | None = None

    @property
    def topic(self) -> str:
        return topic_of(self.worldid, self.type)

    @property
    def ends_subject(self) -> bool:
        """Whether the subject no longer exists after this event: tags without a queue, a dropped queue."""
        if self.data is None or self.type in _ENDS:
            return True
        if self.type == "queue_lifecycle":
            return self.data.get("change") == "drop"
        return self.type == "queue_updated" and self.data.get("queues") in ([], ())


def unreadable_event(topic: str, sequence: int) -> CloudEvent:
    """Return the event that stands for an entry of a log which cannot be read.

    It keeps the entry's place, so that no subscriber sees a gap, and changes the state of no subject.
    """
    name = f"{UNREADABLE}:{topic}:{sequence}"[:128]
    return CloudEvent(
        id=name,
        source="/qmtl/log",
        type=UNREADABLE,
        subject=name,
        time=datetime.fromtimestamp(0, UTC),
        worldid=topic.rpartition(".")[0],
        idempotencykey=name,
    )


class DeadLetter(Model):
    """An event that the relay could not publish and set aside at `at`; `reason` is the error."""

    number: int
    type: str
    world_id: str
    subject: str
    reason: str
    at: UtcTime


class ActivationUpdated(ActivationEnvelope):
    """An activation changed.

    `state_hash` is that of the world's activation after this change; `sequence` counts the world's changes of
    activation.
    """

    state_hash: str
    sequence: int


class DecisionUpdated(Model):
    """A world was judged. `active`: the weight (0…1) of each active strategy, by strategy_id."""

    world_id: str
    etag: str
    policy_version: int
    effective_mode: str
    execution_domain: Domain | None
    decided_at: UtcTime
    ttl: int
    reason: str
    active: dict[str, float]


class PolicyUpdated(Model):
    """A world has a new policy version."""

    world_id: str
    version: int


class QueueRef(Model):
    """A queue that a tag query finds. `global_` is written `global`: whether every world may read it."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    queue: str
    node_id: str = ""
    name: str = ""
    global_: bool = Field(False, alias="global")


class QueueUpdated(Model):
    """All queues with exactly these tags and this interval (seconds)."""

    tags: tuple[str, ...]
    interval: int
    queues: tuple[QueueRef, ...]
    match_mode: Literal["any", "all"] = "all"
    world_id: str
    execution_domain: Domain
    version: int


class TagQueryUpsert(QueueUpdated):
    """All queues that a tag query finds."""


class QueueLifecycle(Model):
    """A queue was archived or dropped."""

    world_id: str
    execution_domain: Domain
    queue: str
    node_id: str
    change: Literal["archive", "drop"]
    archive: str = Field("", description="content hash of the archive")


class SentinelWeight(Model):
    """The weight of a strategy's version, by its sentinel."""

    world_id: str
    sentinel_id: str
    strategy_id: str
    weight: float = Field(ge=0, le=1)
    version: str = ""


class ApplyChanged(Model):
    """An apply reached a step or ended."""

    world_id: str
    run_id: str
    state: ApplyState
    title: str = ""
    reason: str = ""


class RebalancingChanged(Model):
    """A rebalancing reached a step or ended; each of its worlds has the event."""

    world_id: str
    run_id: str
    state: RebalanceState


class PromotionChanged(Model):
    """A promotion was requested or ended."""

    world_id: str
    strategy_id: str
    run_id: str
    state: Literal["requested", "completed", "stopped"]
    reason: str = ""


class ApprovalGiven(Model):
    """A person approved or rejected an apply; see `Approval`."""

    world_id: str
    run_id: str
    actor: str
    verdict: Literal["approve", "reject"]
    via: Literal["gateway", "direct"]
    counts: bool


class SessionChanged(Model):
    """A session was opened or ended."""

    world_id: str
    session_id: str
    strategy_id: str
    state: Literal["open", "ended"]
    reason: str = ""


DATA: dict[str, type[Model]] = {
    "activation_updated": ActivationUpdated,
    "decision_updated": DecisionUpdated,
    "policy_updated": PolicyUpdated,
    "queue_updated": QueueUpdated,
    "queue_lifecycle": QueueLifecycle,
    "tagquery.upsert": TagQueryUpsert,
    "sentinel_weight": SentinelWeight,
    "apply.requested": ApplyChanged,
    "apply.state": ApplyChanged,
    "approval.given": ApprovalGiven,
    "approval.rejected": ApprovalGiven,
    "promotion.state": PromotionChanged,
    "rebalancing.state": RebalancingChanged,
    "session.opened": SessionChanged,
    "session.ended": SessionChanged,
}
"""The schema of each event type's data. Data of a type that is not here has no fixed schema."""
