"""The size of a batch that one request carries: smaller while a proxy refuses large requests."""

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.routes.transport import NOT_A_GATEWAY


class BatchSize:
    """How many items the next request carries, `most` at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.items = most

    def failed(self, error: QmtlError, sent: int) -> None:
        """Halve it where something else than a Gateway refused `sent` items: they may be too large for it.

        A Gateway that is away or limits the rate takes as many items as before, and more requests would be
        refused more often.
        """
        if error.details.get(NOT_A_GATEWAY):
            self.items = max(1, sent // 2)

    def succeeded(self) -> None:
        """Double it."""
        self.items = min(self._most, 2 * self.items)
