"""Keeping a lease while the computation runs: a thread that heartbeats with the newest progress."""

import threading
from types import TracebackType

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import Heartbeat, Lease
from qmtl_sdk.runtime.client import GatewayClient


class Heartbeats:
    """Beats three times within the lease's time-out. `lost` once the service says that the lease has ended."""

    def __init__(self, client: GatewayClient, lease: Lease) -> None:
        self._client, self._lease = client, lease
        self.newest, self.lost = Heartbeat(), False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qmtl-heartbeats", daemon=True)

    def report(self, beat: Heartbeat) -> None:
        self.newest = beat

    def _run(self) -> None:
        while not self._stop.wait(self._lease.heartbeat_timeout_s / 3):
            try:
                self._client.heartbeat(self._lease.lease_id, self.newest)
            except QmtlError as error:
                # Away: the next beat may get through. Ended: computing goes on, and the result is handed in under a new lease.
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
