"""Count what a stream client receives."""

from collections import Counter, deque


class StreamCounters:
    """What a client has received. `max_gap` is the largest number of events missing before a received one."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.snapshots: Counter[str] = Counter()
        self.doubles = 0
        self.reconnects = 0
        self.max_gap = 0
        self.polls = 0
        self.malformed = 0
        self.delivery_ms: deque[float] = deque(maxlen=10_000)

    def p95_ms(self) -> float | None:
        """Return the 95th percentile of the delivery time in ms; None without events."""
        found = sorted(self.delivery_ms)
        return round(found[min(len(found) - 1, int(len(found) * 0.95))], 1) if found else None
