"""The event stream: subscriptions, the frames of a WebSocket, and polling. Each frame is one JSON object."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from qmtl_sdk.contracts.events import DATA, KINDS, SUBSCRIBED, CloudEvent
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.topic_state import Sequenced
from qmtl_sdk.contracts.worlds import UtcTime

CLOSE_POLICY = 1008
"""Close code (RFC 6455): the server refuses the client; the reason starts with an error code."""

CLOSE_BINARY = 1003
"""Close code (RFC 6455): the client sent a binary frame."""

CLOSE_SLOW = 1013
"""Close code (IANA registry): the client reads too slowly and should connect again."""

_REASON = re.compile(r"^(E_[A-Z_]+)\b")

Positions = Annotated[
    dict[Annotated[PlainLine, Field(max_length=64)], Annotated[int, Field(ge=0, lt=2**63)]],
    Field(max_length=len(KINDS)),
]
"""The last sequence number that was handled, by kind of topic."""


class Subscribe(Model):
    """`POST /events/subscribe`.

    `topics` are kinds; `strategy_id` is set for a strategy's own subscription.
    """

    world_id: PlainLine = Field(min_length=1, max_length=64)
    strategy_id: PlainLine = Field("", max_length=128)
    topics: tuple[Annotated[PlainLine, Field(max_length=64)], ...] = Field(
        SUBSCRIBED, min_length=1, max_length=len(KINDS)
    )


class Subscription(Model):
    """The addresses and the token of a stream. `expires_in` is in seconds from now, independent of clocks."""

    stream_url: str
    poll_url: str
    token: str
    topics: tuple[str, ...]
    expires_at: UtcTime
    expires_in: float


class Hello(Model):
    """The first frame of a client.

    `positions`: the last sequence number that the client has of each kind, in the log named `log`. A kind
    without a position gets a snapshot.
    """

    type: Literal["hello"] = "hello"
    token: str = Field(max_length=8192)
    log: PlainLine = Field("", max_length=64)
    positions: Positions = {}


class Refresh(Model):
    """A client's new token, before the old one expires."""

    type: Literal["refresh"] = "refresh"
    token: str = Field(max_length=8192)


ClientFrame: TypeAdapter[Hello | Refresh] = TypeAdapter(
    Annotated[Hello | Refresh, Field(discriminator="type")]
)


class Snapshot(Model):
    """The state of a topic as of `sequence`.

    `reason`: `first` (no position), `retention` (the position is older than the log), `log` (the position
    belongs to another log).
    """

    type: Literal["snapshot"] = "snapshot"
    topic: str
    log: str
    sequence: int = Field(ge=0)
    reason: Literal["first", "retention", "log"]
    events: tuple[CloudEvent, ...]
    state_hash: str


class Resumed(Model):
    """The topic continues after `sequence`, the client's position."""

    type: Literal["resumed"] = "resumed"
    topic: str
    log: str
    sequence: int = Field(ge=0)


class EventFrame(Sequenced):
    """One event of a topic."""

    type: Literal["event"] = "event"
    topic: str


class HeartbeatFrame(Model):
    """Sent regularly: the newest sequence number of each topic, from which a client computes its lag."""

    type: Literal["heartbeat"] = "heartbeat"
    positions: Positions


class Refreshed(Model):
    """The answer to `Refresh`; `expires_in` is in seconds."""

    type: Literal["refreshed"] = "refreshed"
    expires_in: float


ServerFrame: TypeAdapter[Snapshot | Resumed | EventFrame | HeartbeatFrame | Refreshed] = TypeAdapter(
    Annotated[Snapshot | Resumed | EventFrame | HeartbeatFrame | Refreshed, Field(discriminator="type")]
)


class PolledTopic(Model):
    """A topic's part of a poll: a snapshot if the position needs one, then the events after it."""

    snapshot: Snapshot | None = None
    events: tuple[Sequenced, ...] = ()


class Polled(Model):
    """The answer to a poll. `newest`: the newest sequence number of each kind."""

    log: str
    topics: dict[str, PolledTopic]
    newest: Positions


def close_code(reason: str) -> str:
    """Return the error code that a close frame's reason starts with, or an empty string."""
    found = _REASON.match(reason)
    return found[1] if found else ""


def schemas() -> dict[str, Any]:
    """Return the JSON schemas of the envelope, of each event type's data, and of the stream's frames."""
    return {
        "cloudevent": CloudEvent.model_json_schema(),
        "data": {name: model.model_json_schema(by_alias=True) for name, model in DATA.items()},
        "client_frames": ClientFrame.json_schema(),
        "server_frames": ServerFrame.json_schema(),
    }
