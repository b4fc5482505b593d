"""Acknowledgements of freezes and unfreezes that no Gateway has taken yet."""

from collections import deque

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.withheld import RETRIED


class Acknowledgements:
    """Queues acknowledgements and sends them in order."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self._waiting: deque[tuple[SessionKey, int]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, session: SessionKey, sequence: int) -> None:
        """Queue the acknowledgement of a change of the fence."""
        self._waiting.append((session, sequence))

    def send(self) -> None:
        """Send all. One that is refused is dropped: its session or world is gone.

        Raises QmtlError where no Gateway answers.
        """
        while self._waiting:
            try:
                self._client.ack_session(*self._waiting[0])
            except QmtlError as error:
                if error.code in RETRIED:
                    raise
            self._waiting.popleft()
