"""Keep the compute lease while the computation runs: a thread sends heartbeats with the newest progress."""

import threading
from types import TracebackType

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import Heartbeat, Lease
from qmtl_sdk.runtime.client import GatewayClient

ENDED = ("E_LEASE_LOST", "E_LEASE_UNKNOWN", "E_LEASE_HOLDER")
"""Answers after which no heartbeat can succeed."""


class Heartbeats:
    """Sends three heartbeats per lease timeout, until the service says that the lease has ended.

    Then computing goes on, and the result is submitted under a new lease.
    """

    def __init__(self, client: GatewayClient, lease: Lease) -> None:
        self._client = client
        self._lease = lease
        self.newest = Heartbeat()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qmtl-heartbeats", daemon=True)

    def report(self, heartbeat: Heartbeat) -> None:
        """Set the progress that the next heartbeat sends."""
        self.newest = heartbeat

    def _run(self) -> None:
        while not self._stop.wait(self._lease.heartbeat_timeout_s / 3):
            try:
                self._client.heartbeat(self._lease.lease_id, self.newest)
            except QmtlError as error:
                if error.code in ENDED:
                    return
                # Else the next one may succeed: the Gateway is unavailable, or answers too many requests.

    def __enter__(self) -> "Heartbeats":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
