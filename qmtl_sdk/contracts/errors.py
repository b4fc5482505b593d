"""The errors of QMTL: a stable code, what is wrong and where, and what to do.

Errors are raised where the fault is known and translated once, at the edge: into an HTTP problem document, a
line of the command with its exit code, or a workflow failure that is not retried.
"""

import difflib
from typing import Any

CODES: dict[str, int] = {
    # identity and DAG
    "E_CHECKSUM_MISMATCH": 400,
    "E_NODE_ID_FIELDS": 400,
    "E_NODE_ID_MISMATCH": 400,
    "E_SCHEMA_COMPAT_MISMATCH": 400,
    "E_PARAM_NOT_FINITE": 422,
    "E_PARAM_TYPE": 422,
    "E_CLOSURE_VALUE": 422,
    "E_DAG_EMPTY": 422,
    "E_DAG_CYCLE": 422,
    "E_DAG_INPUT_UNDEFINED": 422,
    "E_DAG_ASSIGNED_TWICE": 422,
    "E_DAG_MIXED_CLOCKS": 422,
    "E_DAG_RETURNS": 422,
    "E_INTERVAL": 422,
    "E_PERIOD": 422,
    "E_NODE_INPUT": 422,
    "E_NODE_OPTION": 422,
    # requests
    "E_BODY_INVALID": 422,
    "E_BODY_JSON": 422,
    "E_BODY_TOO_LARGE": 413,
    "E_NOT_CONFIRMED": 409,
    "E_IDEMPOTENCY_KEY_REUSED": 409,
    "E_NOT_FOUND": 404,
    "E_METHOD": 405,
    "E_STRATEGY_UNKNOWN": 404,
    "E_LEASE_LOST": 409,
    "E_LEASE_UNKNOWN": 404,
    "E_LEASE_HOLDER": 403,
    "E_CANCELLED": 409,
    "E_ABANDONED": 409,
    "E_ARTIFACT_HASH": 400,
    "E_ARTIFACT_UNKNOWN": 404,
    "E_ARTIFACT_DAMAGED": 500,
    "E_RETURNS_INVALID": 422,
    # access
    "E_TOKEN_MISSING": 401,
    "E_TOKEN_INVALID": 401,
    "E_TOKEN_EXPIRED": 401,
    "E_TOKEN_EARLY": 401,
    "E_TOKEN_KEY": 401,
    "E_TOKEN_AUDIENCE": 401,
    "E_TOKEN_REVOKED": 401,
    "E_TOKEN_UNKNOWN": 404,
    "E_ROLE": 403,
    "E_WORLD_FORBIDDEN": 403,
    "E_LIVE_HEADER": 403,
    "E_GRANT": 403,
    "E_CHANGE_PENDING": 409,
    "E_CHANGE_UNKNOWN": 404,
    "E_CHANGE_ENDED": 409,
    "E_QUEUE_FORBIDDEN": 403,
    "E_QUEUE_KEY": 422,
    "E_PRINCIPAL_UNKNOWN": 403,
    "E_PRINCIPAL_DISABLED": 403,
    "E_PRINCIPAL_RESERVED": 422,
    "E_PRINCIPAL_EXISTS": 409,
    "E_RATE": 429,
    "E_SOCKETS": 429,
    # the stream
    "E_TOPIC_UNKNOWN": 422,
    "E_TOPIC_FORBIDDEN": 403,
    "E_STRATEGY_FORBIDDEN": 403,
    "E_SEQUENCE_FUTURE": 422,
    "E_FRAME": 422,
    "E_FRAME_BINARY": 422,
    "E_SLOW_READER": 429,
    "E_EVENT_INVALID": 422,
    # sessions and queues
    "E_SESSION_UNKNOWN": 404,
    "E_SESSION_LOST": 409,
    "E_SESSION_HOLDER": 403,
    "E_SESSION_INACTIVE": 409,
    "E_SHADOW": 403,
    "E_DEAD_LETTER_UNKNOWN": 404,
    "E_DEAD_LETTER_SUPERSEDED": 409,
    "E_QUEUE_UNKNOWN": 404,
    "E_ARCHIVE": 409,
    "E_QUEUE_ARCHIVE": 409,
    # worlds and policies
    "E_WORLD_UNKNOWN": 404,
    "E_WORLD_EXISTS": 409,
    "E_WORLD_INVALID": 422,
    "E_WORLDS_SEVERAL": 422,
    "E_POLICY_INVALID": 422,
    "E_POLICY_MISSING": 409,
    "E_POLICY_UNKNOWN": 404,
    "E_POLICY_VERSION": 409,
    "E_EXPRESSION": 422,
    "E_METRIC_UNKNOWN": 422,
    "E_DECISION_UNKNOWN": 404,
    # applies, approvals, the fence
    "E_APPLY_RUNNING": 409,
    "E_REBALANCING": 409,
    "E_REBALANCE_ENDED": 409,
    "E_APPLY_UNKNOWN": 404,
    "E_REBALANCE_UNKNOWN": 404,
    "E_SCHEDULE_UNKNOWN": 404,
    "E_SCHEDULES_MANY": 409,
    "E_APPLY_ENDED": 409,
    "E_APPLY_SWITCHED": 409,
    "E_APPLY_RESTORED": 409,
    "E_APPLY_ABORTED": 409,
    "E_APPLY_EMPTY": 409,
    "E_PROMOTION_RUNNING": 409,
    "E_PROMOTION_UNKNOWN": 404,
    "E_PROMOTION_ENDED": 409,
    "E_RUN_ID_REUSED": 409,
    "E_DRAIN_TIMEOUT": 409,
    "E_FINGERPRINT_MISSING": 422,
    "E_SHARE_POLICY": 422,
    "E_LIVE_NOT_ALLOWED": 403,
    "E_ETAG": 409,
    "E_APPLY_REJECTED": 409,
    "E_APPROVAL_MISSING": 409,
    "E_HALTED": 409,
    "E_FLATTENING": 409,
    "E_APPROVAL_OWN": 403,
    "E_APPROVAL_ROLE": 403,
    "E_WORLD_FROZEN": 409,
    "E_WORLD_OPEN": 409,
    "E_NOT_HALTED": 409,
    "E_HALT_INCOMPLETE": 500,
    "E_WORLD_ARCHIVED": 409,
    "E_EDGE_LIVE": 403,
    "E_EDGE_NO_EFFECT": 422,
    "E_WEIGHT": 422,
    "E_AUDIT_BROKEN": 409,
    # orders, fills, the ledger
    "E_ORDER_UNKNOWN": 404,
    "E_ORDER_NOT_SENT": 409,
    "E_FILL_UNKNOWN": 404,
    "E_FILL_REUSED": 409,
    "E_FILL_EXCEEDS": 422,
    "E_BOOKING": 422,
    "E_BOOKING_REUSED": 409,
    "E_FLATTEN_REUSED": 409,
    "E_NOT_FLAT": 409,
    # allocation and rebalancing
    "E_ALLOCATION_MISSING": 422,
    "E_ALPHA_METRICS_REQUIRED": 422,
    "E_INSTRUMENT_UNKNOWN": 422,
    "E_MARK_CONFLICT": 422,
    "E_ORDER_SCOPE": 422,
    "E_REBALANCE_MODE": 422,
    "E_MARK": 422,
    "E_OVERLAY": 422,
    "E_QUANTITY_RANGE": 422,
    "E_SHARED_ACCOUNT_DISABLED": 403,
    "E_SHARED_ACCOUNT_POLICY": 422,
    # extensions
    "E_EXTENSION": 422,
    "E_EXTENSION_UNKNOWN": 422,
    # data
    "E_DATA_FORBIDDEN": 403,
    "E_DATA_NOT_FOUND": 422,
    "E_DATA_SCHEMA": 422,
    "E_DATA_EMPTY": 422,
    "E_DATA_UNSORTED": 422,
    "E_DATA_DUPLICATE": 422,
    "E_DATA_MISALIGNED": 422,
    "E_DATA_GAP": 422,
    "E_STREAM_UNBOUND": 422,
    "E_STREAM_AMBIGUOUS": 422,
    "E_DATASET_CHANGED": 409,
    # compute
    "E_COMPUTE_FAILED": 422,
    "E_COMPUTE_OUTPUT": 422,
    "E_OUTPUT_TIME": 422,
    "E_LOOKAHEAD": 422,
    "E_STATEFUL": 422,
    "E_HISTORY_SHORT": 422,
    "E_RETURNS_AMBIGUOUS": 422,
    "E_RETURNS_MISSING": 422,
    "E_COLUMN_MISSING": 422,
    # simulated execution
    "E_EXECUTION": 422,
    # processes and configuration
    "E_STRATEGY_FILE": 422,
    "E_CONFIG": 422,
    "E_STACK": 503,
    "E_TEMPORAL_MISSING": 503,
    "E_UNAVAILABLE": 503,
    "E_RECORDED": 503,
    "E_DATABASE_NEWER": 503,
    "E_FOREIGN_STORE": 409,
    "E_INTERNAL": 500,
}
"""The HTTP status of every error code. Codes are stable; messages may change."""


class QmtlError(Exception):
    """An error with a stable `code`: what is wrong (`message`), what to do (`remedy`), and facts (`details`).

    Raises KeyError for a code that is not in `CODES`.
    """

    def __init__(self, code: str, message: str, remedy: str = "", **details: Any) -> None:
        if code not in CODES:
            raise KeyError(f"{code} is not a registered error code")
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.details = details

    @property
    def status(self) -> int:
        """The HTTP status."""
        return CODES[self.code]

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" + (f" → {self.remedy}" if self.remedy else "")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.code, self.message, self.remedy, self.details)


def _rebuild(code: str, message: str, remedy: str, details: dict[str, Any]) -> QmtlError:
    return QmtlError(code, message, remedy, **details)


def nearest(word: str, known: "list[str]") -> str:
    """Return “ (did you mean …?)” for a word close to a known one, else an empty string."""
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
