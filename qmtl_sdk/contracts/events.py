"""What changed, as everyone hears of it: CloudEvents 1.0 on topics of a world, and the frames of the stream that carries them.

A topic is `{world_id}.{kind}`, `_` for what belongs to no world; each numbers its events 1, 2, 3 … (`sequence`). What a topic says now is the newest
event of each subject (`TopicState`): that is what a snapshot holds, what a client folds its events into, and what `state_hash` is a hash of. So a client
that has the same sequence as the log has the same state.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import ActivationEnvelope, UtcTime

NO_WORLD = "_"
_RECENT = 5000
_ENDS = {"session.ended"}
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
SUBSCRIBED = ("activation", "decisions", "policy", "queues")
"""The kinds that a running strategy follows unless it says otherwise."""

_KIND_OF = {
    "activation_updated": "activation",
    "decision_updated": "decisions",
    "policy_updated": "policy",
    "queue_updated": "queues",
    "queue_lifecycle": "queues",
    "tagquery.upsert": "queues",
    "sentinel_weight": "queues",
    "rebalancing.planned": "rebalancing",
}
_KIND_OF_PREFIX = {
    "apply": "applies",
    "approval": "applies",
    "promotion": "applies",
    "session": "sessions",
    "submission": "submissions",
    "run": "submissions",
    "evidence": "submissions",
    "world": "worlds",
    "store": "worlds",
    "token": "worlds",
}


def kind_of(event_type: str) -> str:
    """The kind of topic that an event belongs to; `other` for a type that is not known."""
    return _KIND_OF.get(event_type) or _KIND_OF_PREFIX.get(event_type.partition(".")[0], "other")


def topic_of(world_id: str, event_type: str) -> str:
    return f"{world_id or NO_WORLD}.{kind_of(event_type)}"


class CloudEvent(Model):
    """CloudEvents 1.0, JSON format. `idempotencykey` is the same each time that the event is sent; `partitionkey` keeps order. No `data`: the subject is gone."""

    model_config = ConfigDict(frozen=True, extra="allow")  # CloudEvents lets anyone add extension attributes

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1, max_length=128)
    source: str = Field(min_length=1, max_length=256)
    type: str = Field(min_length=1, max_length=128)
    subject: str = Field(min_length=1, max_length=256)
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
        """Whether its subject is gone with it."""
        return self.data is None or self.type in _ENDS


class ActivationUpdated(ActivationEnvelope):
    """`state_hash` is that of the world's activation after this change; `sequence` counts the world's changes of activation."""

    state_hash: str
    sequence: int


class DecisionUpdated(Model):
    world_id: str
    etag: str
    policy_version: int
    effective_mode: str
    decided_at: UtcTime
    ttl: int
    reason: str
    active: dict[str, float]


class PolicyUpdated(Model):
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
    """The queues with just these tags and this interval, all of them."""

    tags: tuple[str, ...]
    interval: int
    queues: tuple[QueueRef, ...]
    match_mode: Literal["any", "all"] = "all"
    world_id: str
    execution_domain: Domain
    version: int


class TagQueryUpsert(QueueUpdated):
    """What a tag query finds, all of it."""


class QueueLifecycle(Model):
    world_id: str
    execution_domain: Domain
    queue: str
    node_id: str
    change: Literal["archive", "drop"]
    archive: str = Field("", description="content hash of the archive")


class SentinelWeight(Model):
    world_id: str
    sentinel_id: str
    strategy_id: str
    weight: float = Field(ge=0, le=1)
    version: str = ""


class ApplyState(Model):
    world_id: str
    run_id: str
    state: str
    title: str = ""
    reason: str = ""


class PromotionState(Model):
    world_id: str
    strategy_id: str
    run_id: str
    state: Literal["requested", "completed", "stopped"]
    reason: str = ""


class ApprovalGiven(Model):
    world_id: str
    run_id: str
    actor: str
    verdict: Literal["approve", "reject"]
    via: Literal["gateway", "direct"]
    counts: bool


class SessionChanged(Model):
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
    "apply.requested": ApplyState,
    "apply.state": ApplyState,
    "approval.given": ApprovalGiven,
    "promotion.state": PromotionState,
    "session.opened": SessionChanged,
    "session.ended": SessionChanged,
}
"""The schema of each event's data. Types that are not here carry an object of their own."""


class Sequenced(Model):
    """An event with its place in its topic."""

    sequence: int = Field(ge=1)
    event: CloudEvent


class TopicState:
    """What a topic says: the newest event of each subject, as of `sequence`. Folding the same events gives the same state, whatever was sent twice.

    Twice is: the same sequence again, or (a bus that was told twice after a crash) the same idempotency key among the last `_RECENT` under a new sequence.
    """

    def __init__(self, sequence: int = 0, events: Iterable[CloudEvent] = ()) -> None:
        self.sequence = sequence
        self.events: dict[str, CloudEvent] = {event.subject: event for event in events}
        self._recent = dict.fromkeys(event.idempotencykey for event in self.events.values())

    def apply(self, item: Sequenced) -> bool:
        """Whether the event was new. One that was seen before changes nothing. Raises GapError for one that comes too early."""
        if item.sequence <= self.sequence:
            return False
        if item.sequence > self.sequence + 1:
            raise GapError(self.sequence, item.sequence)
        self.sequence = item.sequence
        if item.event.idempotencykey in self._recent:
            return False
        self._recent[item.event.idempotencykey] = None
        if len(self._recent) > _RECENT + len(self.events):
            del self._recent[next(iter(self._recent))]
        if item.event.ends_subject:
            self.events.pop(item.event.subject, None)
        else:
            self.events[item.event.subject] = item.event
        return True

    @property
    def state_hash(self) -> str:
        return state_hash({subject: event.data for subject, event in self.events.items()})


class GapError(Exception):
    """Events between two sequences were not seen."""

    def __init__(self, seen: int, came: int) -> None:
        super().__init__(f"event {came} came after {seen}")
        self.seen, self.came = seen, came


def entry_hash(data: Mapping[str, Any]) -> str:
    """The hash of what is said of one subject; of the data's own `state_hash`, nothing."""
    return hash_of({key: value for key, value in data.items() if key != "state_hash"})


def combined_hash(entries: Mapping[str, str]) -> str:
    """The hash of a whole state, from the hash of each subject's entry: one that changes is hashed anew, not all of them."""
    return hash_of(dict(entries))


def state_hash(entries: Mapping[str, Any]) -> str:
    """The hash of what is said of each subject."""
    return combined_hash({subject: entry_hash(data) for subject, data in entries.items()})


# subscribing


class Subscribe(Model):
    """`POST /events/subscribe`. `topics` are kinds; a strategy's own subscription names it."""

    world_id: str = Field(min_length=1, max_length=64)
    strategy_id: str = Field("", max_length=128)
    topics: tuple[str, ...] = Field(SUBSCRIBED, min_length=1, max_length=len(KINDS))


class Subscription(Model):
    """Where to listen and with what. `expires_in` counts from now, so that a client's wrong clock does no harm."""

    stream_url: str
    poll_url: str
    token: str
    topics: tuple[str, ...]
    expires_at: UtcTime
    expires_in: float


# frames of the stream, one JSON object each

Positions = dict[Annotated[str, Field(max_length=64)], Annotated[int, Field(ge=0, lt=2**63)]]


class Hello(Model):
    """First frame of a client. `positions`: the last sequence seen of each kind, in the log that `log` names; a kind that is not there gets a snapshot."""

    type: Literal["hello"] = "hello"
    token: str = Field(max_length=8192)
    log: str = Field("", max_length=64)
    positions: Positions = {}


class Refresh(Model):
    type: Literal["refresh"] = "refresh"
    token: str = Field(max_length=8192)


ClientFrame: TypeAdapter[Hello | Refresh] = TypeAdapter(
    Annotated[Hello | Refresh, Field(discriminator="type")]
)


class Snapshot(Model):
    """What a topic says as of `sequence`. `reason`: first; retention (the position is too old); log (the position is of another log)."""

    type: Literal["snapshot"] = "snapshot"
    topic: str
    log: str
    sequence: int = Field(ge=0)
    reason: Literal["first", "retention", "log"]
    events: tuple[CloudEvent, ...]
    state_hash: str


class Resumed(Model):
    """The topic goes on after `sequence`, where the client had left it."""

    type: Literal["resumed"] = "resumed"
    topic: str
    log: str
    sequence: int = Field(ge=0)


class EventFrame(Sequenced):
    type: Literal["event"] = "event"
    topic: str


class HeartbeatFrame(Model):
    """Sent now and then: the newest sequence of each topic, so that a client knows how far behind it is, and that it is heard of."""

    type: Literal["beat"] = "beat"
    positions: Positions


class Refreshed(Model):
    type: Literal["refreshed"] = "refreshed"
    expires_in: float


ServerFrame: TypeAdapter[Snapshot | Resumed | EventFrame | HeartbeatFrame | Refreshed] = TypeAdapter(
    Annotated[Snapshot | Resumed | EventFrame | HeartbeatFrame | Refreshed, Field(discriminator="type")]
)


class PolledTopic(Model):
    """What polling brings of one topic: a snapshot where the position calls for one, then the events after it."""

    snapshot: Snapshot | None = None
    events: tuple[Sequenced, ...] = ()


class Polled(Model):
    log: str
    topics: dict[str, PolledTopic]
    newest: Positions


# why the server closes a socket: 1008 with a code of `errors`, or one of these
CLOSE_POLICY, CLOSE_BINARY, CLOSE_SLOW = 1008, 1003, 1013
_REASON = re.compile(r"^(E_[A-Z_]+)\b")


def close_code(reason: str) -> str:
    """The error code that a close frame's reason starts with; nothing where it has none."""
    found = _REASON.match(reason)
    return found[1] if found else ""


def schemas() -> dict[str, Any]:
    """JSON schemas of the envelope, of each type's data, and of the stream's frames."""
    return {
        "cloudevent": CloudEvent.model_json_schema(),
        "data": {name: model.model_json_schema(by_alias=True) for name, model in DATA.items()},
        "client_frames": ClientFrame.json_schema(),
        "server_frames": ServerFrame.json_schema(),
    }
