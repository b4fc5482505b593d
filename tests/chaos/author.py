"""An author who submits one strategy after another, and brings the returns of each until it is decided."""

import threading
import time
import uuid

from sqlmodel import select

from activities.storage.database import Database
from activities.storage.tables import CommitLogRow
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.submission import EvidenceRef, StrategySubmit
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.runtime.client import GatewayClient
from tests.chaos.poisons import submission
from tests.support.frames import series

LIMIT_S = 180.0
"""Seconds in which a submission must be decided."""
PAUSE_S = 1.0
"""Seconds between two submissions."""
AWAY = {"E_UNAVAILABLE", "E_RECORDED"}
"""Errors after which an author sends the same again."""
LEASE_ENDED = {"E_LEASE_LOST", "E_LEASE_UNKNOWN"}
"""Errors after which an author submits the strategy anew, as the SDK does: its run has ended."""


class Author:
    """Submits on a thread of its own. `run_ids` are those of the acknowledged submissions, by their key."""

    def __init__(self, client: GatewayClient, world: str) -> None:
        self._client = client
        self._world = world
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="author")
        self.run_ids: dict[str, str] = {}
        self.decided = 0
        self.violations: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Wait until the submission that is under way has ended, and make no other."""
        self._stop.set()
        self._thread.join()
        self._client.close()

    def lost(self, database: Database) -> list[str]:
        """Acknowledged submissions that the commit log does not have, or has with another run."""
        with database.read() as session:
            rows = session.exec(select(CommitLogRow).where(CommitLogRow.world_id == self._world)).all()
        logged = {row.idempotency_key: row.run_id for row in rows}
        return [
            f"submission {key} was acknowledged with run {run}, the log has {logged.get(key)}"
            for key, run in self.run_ids.items()
            if logged.get(key) != run
        ]

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                self._submit(number)
            except Exception as error:  # a thread that ends unseen would be a run without submissions
                self.violations.append(f"submission {number} failed: {error!r}")
            number += 1
            self._stop.wait(PAUSE_S)

    def _submit(self, number: int) -> None:
        body = StrategySubmit.model_validate(submission(self._world, number))
        returns = encode(series([0.0] + [0.01, -0.005, 0.002 * (number % 7)] * 20))
        digest = content_hash(returns)
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            try:
                ack = self._client.submit(body)
                self.run_ids[body.idempotency_key] = ack.run_id
                if ack.lease:
                    self._client.put_artifact(digest, returns)
                    self._client.complete(ack.lease.lease_id, EvidenceRef(returns_hash=digest))
                state = self._client.status(ack.strategy_id, self._world, ack.run_id, wait_s=5).state
            except QmtlError as error:
                if error.code in LEASE_ENDED:
                    body = body.model_copy(update={"idempotency_key": uuid.uuid4().hex})
                elif error.code not in AWAY:
                    self.violations.append(f"submission {number} was refused: {error}")
                    return
                time.sleep(0.2)
                continue
            if state != "running":
                self.decided += 1
                self.violations += [] if state == "decided" else [f"submission {number} ended as {state}"]
                return
        self.violations.append(f"submission {number} was not decided within {LIMIT_S:g} s")
