"""Keep the compute lease while the computation runs: a thread sends heartbeats with the newest progress."""

import threading
from types import TracebackType

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import Heartbeat, Lease
from qmtl_sdk.runtime.client import GatewayClient


class Heartbeats:
    """Sends three heartbeats per lease timeout; `lost` is set once the service reports the lease ended."""

    def __init__(self, client: GatewayClient, lease: Lease) -> None:
        self._client = client
        self._lease = lease
        self.newest = Heartbeat()
        self.lost = False
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
                # While the Gateway is unavailable, the next heartbeat may succeed. If the lease has ended,
                # computing continues and the result is submitted under a new lease.
                if error.code != "E_UNAVAILABLE":
                    self.lost = True
                    return

    def __enter__(self) -> "Heartbeats":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
