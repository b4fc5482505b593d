"""Sessions (running strategies with a lease on a world), and the rows that their nodes write to queues."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.stream import Positions
from qmtl_sdk.contracts.submission import CacheHitNodes, QueueTarget
from qmtl_sdk.contracts.texts import Count, Identifier, PlainLine, Report
from qmtl_sdk.contracts.worlds import UtcTime, WorldId

SESSION_HEADER = "X-QMTL-Session"
"""The header that carries a session's secret. A header, so that the secret is in no body that is stored."""

# Nanoseconds of a second.
_NS = 1_000_000_000

MAX_SECRET = 128
"""The largest length of a session's secret."""


class SessionOpen(Model):
    """`POST /sessions`. `shadow` requests the shadow domain, which only an operator may."""

    world_id: WorldId
    strategy_id: PlainLine = Field(min_length=1, max_length=128)
    runner: PlainLine = Field(min_length=1, max_length=128)
    host: PlainLine = Field("", max_length=128)
    shadow: bool = False


class SessionGrant(Model):
    """A session with its lease.

    Send a heartbeat within `lease_s` seconds, or the session ends and its order gate closes. Only the actor
    who opened it may act in it, with the secret. `queue_map` is that of the session's own domain.
    """

    session_id: str
    secret: str = Field(
        repr=False, description="the session's secret, which is returned only here; send it in X-QMTL-Session"
    )
    world_id: str
    strategy_id: str
    context: ComputeContext
    queue_map: dict[str, QueueTarget]
    history_keys: dict[str, str] = Field(
        description="by NodeID, the ComputeKey of the output up to the context's as_of"
    )
    lease_s: float
    now: UtcTime = Field(description="the Gateway's clock, which the session uses")


class SessionLease(Model):
    """The answer to a heartbeat: the end of the lease, and the Gateway's clock."""

    session_id: str
    expires_at: UtcTime
    now: UtcTime


class SessionHeartbeat(Model):
    """The state of a session.

    `positions`: the last sequence number of each topic that it has handled. `lag_s`: how far that is behind.
    `bar`: the newest close that was computed, world time. `resident_bytes`: of the rows that nodes retain.
    `cross_context_hits` halt the strategy, once each.
    """

    positions: Positions = {}
    lag_s: float = Field(0.0, ge=0, le=1e12)
    gate: Literal["open", "closed"] = "closed"
    reason: Report = Field("", max_length=300)
    bar: Report = Field("", max_length=64)
    bars: Count = 0
    resident_bytes: Count = 0
    dropped_bars: Count = Field(0, description="bars that were repeated or older than the newest")
    fault: Report = Field("", max_length=500)
    refused_targets: Count = Field(0, description="targets that were refused when they were last sent")
    target_refusal: Report = Field("", max_length=500, description="why, of most of them")
    cross_context_hits: CacheHitNodes = ()

    @property
    def bar_time(self) -> datetime | None:
        """The time of `bar` in UTC; None where it is none, as a runner may report any text."""
        try:
            moment = datetime.fromisoformat(self.bar)
            return moment.astimezone(UTC) if moment.tzinfo else None
        except (ValueError, OverflowError):
            return None


class SessionAck(Model):
    """The session's acknowledgement of a freeze or unfreeze.

    `sequence` is `data.sequence` of the event, not the frame's.
    """

    sequence: int = Field(ge=0, lt=2**31)


class SessionAcked(Model):
    """The answer to an acknowledgement. `in_time`: whether an apply was still waiting for it."""

    in_time: bool


class SessionInfo(OfStrategy):
    """A session as it is listed."""

    session_id: str
    world_id: str
    actor: str
    runner: str
    host: str
    execution_domain: Domain
    opened_at: UtcTime
    expires_at: UtcTime
    ended_at: UtcTime | None = None
    end_reason: str = ""
    report: SessionHeartbeat = SessionHeartbeat()


class QueueMessage(Model):
    """One bar of a node's output.

    `key` is the same for the same bar of the same window; readers drop keys that they have read.
    """

    key: PlainLine = Field(min_length=1, max_length=512)
    ts: int = Field(ge=-(2**63), lt=2**63, description="opening time of the bar, ns since 1970, UTC")
    values: dict[Identifier, float | None] = Field(max_length=200)


class QueueAppend(Model):
    """Messages to add to a queue."""

    messages: tuple[QueueMessage, ...] = Field(min_length=1, max_length=5000)


class QueueAppended(Model):
    """How many of the messages were new."""

    added: int


class QueueRead(Model):
    """Messages after a position; `position` is where to continue."""

    topic: str
    messages: tuple[QueueMessage, ...]
    position: int


class QueueInfo(Model):
    """A queue that a tag query finds. `interval` is in seconds. An announced queue has no domain."""

    topic: str
    node_id: str
    name: str
    interval: int
    tags: tuple[str, ...]
    execution_domain: Domain | Literal[""]
    created_at: UtcTime


def message_key(node_id: str, interval: int, bucket_ts: int, compute_key: str, input_window_hash: str) -> str:
    """Return the key of a bar of a node's output: which node computed it, where, and from which window."""
    return f"{node_id}:{interval}:{bucket_ts}#ck={compute_key}:{input_window_hash}"


def is_key_of(message: QueueMessage, node_id: str, compute_key: str) -> bool:
    """Return whether a message's key is one of its own bar of a node, in the context of `compute_key`."""
    interval = message.key.removeprefix(f"{node_id}:").partition(":")[0]
    if not interval.isdecimal():
        return False
    start = message_key(node_id, int(interval), message.ts // _NS, compute_key, "")
    return message.key.startswith(start) and len(message.key) > len(start)
