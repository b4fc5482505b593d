"""What Prometheus is told (`GET /metrics`). Counters count in this process; gauges are read when they are asked for."""

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from qmtl_sdk.contracts.errors import QmtlError

CHECKSUM_MISMATCH = Counter(
    "nodeid_checksum_mismatch", "submissions whose CRC does not follow from their NodeIDs", ["source"]
)
MISSING_FIELDS = Counter(
    "nodeid_missing_fields", "nodes that lack what their identity is made of", ["field", "node_type"]
)
MISMATCH = Counter("nodeid_mismatch", "nodes whose NodeID does not follow from their fields", ["node_type"])
TAGQUERY_MISMATCH = Counter(
    "tagquery_nodeid_mismatch", "tag queries whose NodeID does not follow from their query"
)
DIFF_MS = Histogram(
    "diff_duration_ms",
    "a submission from its arrival to its answer, in milliseconds",
    buckets=(10, 25, 50, 75, 100, 150, 250, 500, 1000, 2500, 5000),
)
REFUSED = Counter("requests_refused", "requests that were refused", ["code"])

DELIVERED = Counter("stream_frames_sent", "frames sent to subscribers")
DROPPED = Counter("stream_closed", "streams that the Gateway closed, by reason", ["code"])
UNKNOWN = Counter("events_of_unknown_type", "events whose type this version does not know", ["type"])
SOCKETS = Gauge("stream_sockets", "open streams of this Gateway")
OUTBOX_AGE = Gauge("outbox_age_seconds", "how long the oldest event waits for the relay")
SESSIONS = Gauge("sessions", "running strategies", ["world_id", "execution_domain"])
SESSION_LAG = Gauge(
    "session_lag_seconds", "how far the slowest session of a world is behind the stream", ["world_id"]
)
SENTINEL_SKEW = Gauge(
    "sentinel_skew_seconds", "how long the newest change of a sentinel's weight took to reach this Gateway"
)
ORDERS = Counter("orders", "orders that came to the fence, by what it said", ["world_id", "verdict"])
CROSS_CONTEXT_HITS = Gauge(
    "cross_context_cache_hit",
    "cache hits from another context that running strategies reported; must stay 0",
    ["world_id"],
)


def count_refusal(error: QmtlError) -> None:
    """Note a refusal under its code, and those of identity under their own names as well."""
    REFUSED.labels(error.code).inc()
    kind = str(error.details.get("node_type", ""))
    if error.code == "E_CHECKSUM_MISMATCH":
        CHECKSUM_MISMATCH.labels("dag").inc()
    elif error.code == "E_NODE_ID_FIELDS":
        MISSING_FIELDS.labels(str(error.details.get("field", "")), kind).inc()
    elif error.code == "E_NODE_ID_MISMATCH":
        MISMATCH.labels(kind).inc()
        if kind == "TagQueryNode":
            TAGQUERY_MISMATCH.inc()


def exposition() -> bytes:
    return generate_latest(REGISTRY)
