"""The order in which a transaction takes its named locks: two that took them in another order would deadlock.

A name is its kind, a colon, and what it locks, such as `fence:equities`. Rows that several transactions
change without such a lock are locked in the order of their keys; the heads of audit chains come last, in
`Transaction.finish`.
"""

LOCK_ORDER = (
    "store_identity",
    "archive",
    "principal",
    "promotion",
    "dead_letter",
    "allocation",
    "world",
    "fence",
    "graph",
    "audit",
)
"""The kinds of locks, in the order in which a transaction takes them."""

_PLACES = {kind: place for place, kind in enumerate(LOCK_ORDER)}


class LockOrder:
    """The locks of one transaction."""

    def __init__(self) -> None:
        self._last = ""

    def take(self, name: str) -> None:
        """Note that a lock is taken. Raises RuntimeError where another should have been taken after it."""
        if self._last and _place(name) < _place(self._last):
            raise RuntimeError(f"the lock {name} is taken after {self._last}, against LOCK_ORDER")
        self._last = name


def _place(name: str) -> tuple[int, str]:
    return _PLACES[name.partition(":")[0]], name
