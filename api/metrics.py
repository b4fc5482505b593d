"""Prometheus metrics (`GET /metrics`). Counters count in this process; gauges are read at each request."""

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from qmtl_sdk.contracts.dag import NODE, STREAM, TAG_QUERY
from qmtl_sdk.contracts.errors import QmtlError

CHECKSUM_MISMATCH = Counter(
    "nodeid_checksum_mismatch", "submissions whose CRC does not match their NodeIDs", ["source"]
)
MISSING_FIELDS = Counter(
    "nodeid_missing_fields", "nodes without a field that their NodeID is made of", ["field", "node_type"]
)
MISMATCH = Counter("nodeid_mismatch", "nodes whose NodeID does not match their fields", ["node_type"])
TAGQUERY_MISMATCH = Counter("tagquery_nodeid_mismatch", "tag queries whose NodeID does not match their query")
DIFF_MS = Histogram(
    "diff_duration_ms",
    "milliseconds from the arrival of a submission to its response",
    buckets=(10, 25, 50, 75, 100, 150, 250, 500, 1000, 2500, 5000),
)
REFUSED = Counter("requests_refused", "refused requests, by error code", ["code"])

FRAMES_SENT = Counter("stream_frames_sent", "frames that were sent to subscribers")
STREAMS_CLOSED = Counter("stream_closed", "streams that this Gateway closed, by error code", ["code"])
UNKNOWN_EVENTS = Counter(
    "events_of_unknown_type", "events of a type that this version does not know", ["type"]
)
SOCKETS = Gauge("stream_sockets", "open streams at this Gateway")
OUTBOX_AGE = Gauge("outbox_age_seconds", "age of the oldest event that the relay has not published")
DEAD_LETTERS = Gauge("dead_letters", "events that the relay could not publish and set aside")
SESSIONS = Gauge("sessions", "running strategies", ["world_id", "execution_domain"])
SESSION_LAG = Gauge(
    "session_lag_seconds", "lag of the slowest session of a world behind the stream", ["world_id"]
)
NODE_CACHE = Gauge(
    "nodecache_resident_bytes", "bytes of the rows that nodes of running strategies retain", ["world_id"]
)
SENTINEL_GAPS = Gauge(
    "sentinel_gap_count", "strategies of worlds without the version sentinel in front; must stay 0"
)
TO_ACTIVATION = Gauge(
    "submit_to_activation_seconds",
    "seconds from a submission to its decision, of the newest 100 whose strategy is active",
    ["quantile"],
)
SENTINEL_SKEW = Gauge(
    "sentinel_skew_seconds", "seconds until the newest change of a sentinel's weight reached this Gateway"
)
ORDERS = Counter("orders", "orders that were sent to the fence, by verdict", ["world_id", "verdict"])
CROSS_CONTEXT_HITS = Gauge(
    "cross_context_cache_hit",
    "nodes with cache hits from another context, as sessions and submissions reported; must stay 0",
    ["world_id"],
)

OTHER = "other"
"""The label of values that are not known: a label from a text of others must have few values."""
_NODE_TYPES = (STREAM, NODE, TAG_QUERY)
_MAX_TYPES = 20
"""Unknown types of events that have a label of their own."""
_unknown_types: set[str] = set()


def count_unknown(event_type: str) -> None:
    """Count an event of an unknown type, under its type for the first few types and `other` for the rest."""
    if len(_unknown_types) < _MAX_TYPES:
        _unknown_types.add(event_type)
    UNKNOWN_EVENTS.labels(event_type if event_type in _unknown_types else OTHER).inc()


def count_refusal(error: QmtlError) -> None:
    """Count a refusal by its code; also count wrong identities under their own metrics."""
    REFUSED.labels(error.code).inc()
    kind = str(error.details.get("node_type", ""))
    if kind not in _NODE_TYPES:  # a client's text: each other value would be a series of its own for ever
        kind = OTHER
    if error.code == "E_CHECKSUM_MISMATCH":
        CHECKSUM_MISMATCH.labels("dag").inc()
    elif error.code == "E_NODE_ID_FIELDS":
        MISSING_FIELDS.labels(str(error.details.get("field", "")), kind).inc()
    elif error.code == "E_NODE_ID_MISMATCH":
        MISMATCH.labels(kind).inc()
        if kind == "TagQueryNode":
            TAGQUERY_MISMATCH.inc()


def exposition() -> bytes:
    """Return all metrics in the text format of Prometheus."""
    return generate_latest(REGISTRY)
