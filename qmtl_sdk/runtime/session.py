"""The session of a running strategy: its lease, the heartbeats that keep it, and the Gateway's clock."""

import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import SessionGrant, SessionHeartbeat, SessionOpen
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.contained import set_fault
from qmtl_sdk.runtime.routes.running import SessionKey

END_PATIENCE_S = 2.0
"""How long ending a session retries while the Gateway is unavailable, in seconds."""


class SessionKeeper:
    """Opens the session and keeps its lease with three heartbeats per lease; opens a lost session again.

    While the session is lost, the dictionary `faults` of `start` holds the fault `session`.
    """

    def __init__(self, client: GatewayClient, request: SessionOpen, stop: threading.Event) -> None:
        self._client = client
        self._request = request
        self._stop = stop
        self._thread: threading.Thread | None = None
        self._delivered: Callable[[SessionHeartbeat], None] = lambda _: None
        self.grant = self.open(patience_s=30.0)

    @staticmethod
    def request(world_id: str, strategy_id: str, runner: str, shadow: bool) -> SessionOpen:
        """Build the request that opens a session from this host."""
        return SessionOpen(
            world_id=world_id,
            strategy_id=strategy_id,
            runner=runner,
            host=socket.gethostname(),
            shadow=shadow,
        )

    def open(self, patience_s: float = 0.0) -> SessionGrant:
        """Open a session and set the clock from its response; the caller decides whether to use the grant."""
        grant = self._client.open_session(self._request, patience_s)
        self._set_clock(grant.now)
        return grant

    def start(
        self,
        report: Callable[[], SessionHeartbeat],
        delivered: Callable[[SessionHeartbeat], None],
        faults: dict[str, str],
    ) -> None:
        """Start the heartbeats; `report` builds each, `delivered` gets those that were acknowledged."""
        self._delivered = delivered
        self._thread = threading.Thread(
            target=self._run, args=(report, faults), name="qmtl-session", daemon=True
        )
        self._thread.start()

    @property
    def key(self) -> SessionKey:
        """What acts in the current session."""
        return SessionKey.of(self.grant)

    def current_key(self) -> SessionKey:
        """Return the same, as a function for those who send."""
        return self.key

    def join(self) -> None:
        """Wait for the end of the heartbeats, which the event `stop` requests."""
        if self._thread is not None:
            self._thread.join()

    def end(self, reason: str) -> None:
        """End the session. If the Gateway is unavailable or refuses the token, the lease runs out instead."""
        try:
            self._client.end_session(self.key, reason, patience_s=END_PATIENCE_S)
        except QmtlError as error:
            expected = error.code in ("E_UNAVAILABLE", "E_SESSION_UNKNOWN", "E_RATE")
            if not expected and not error.code.startswith("E_TOKEN"):
                raise

    def wall_time(self) -> datetime:
        """Return the current UTC time by the Gateway's clock."""
        now, at = self._clock
        return now + timedelta(seconds=time.monotonic() - at)

    def _set_clock(self, now: datetime) -> None:
        self._clock = (now, time.monotonic())

    def _run(self, report: Callable[[], SessionHeartbeat], faults: dict[str, str]) -> None:
        acknowledged = time.monotonic()
        while not self._stop.wait(self.grant.lease_s / 3):
            try:
                acknowledged = self._send(report, faults, acknowledged)
            except Exception as error:  # heartbeats go on: they are how anybody hears of it
                set_fault(faults, "session", "a heartbeat can't be sent", error)

    def _send(
        self, report: Callable[[], SessionHeartbeat], faults: dict[str, str], acknowledged: float
    ) -> float:
        """Send a heartbeat; return the monotonic time of the newest that was acknowledged."""
        try:
            sent = report()
            response = self._client.session_heartbeat(self.key, sent)
        except QmtlError as error:
            if time.monotonic() - acknowledged > self.grant.lease_s or error.code == "E_SESSION_LOST":
                faults["session"] = f"the session has lost its lease: {error.message}"
            if error.code in ("E_SESSION_LOST", "E_SESSION_UNKNOWN", "E_SESSION_HOLDER"):
                self._reopen(faults)
            return acknowledged
        self._set_clock(response.now)
        self._delivered(sent)
        faults.pop("session", None)
        return time.monotonic()

    def _reopen(self, faults: dict[str, str]) -> None:
        try:
            self.grant = self.open()
            faults.pop("session", None)
        except QmtlError as error:
            faults["session"] = f"no session can be opened: {error.message}"
