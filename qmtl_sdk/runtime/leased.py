"""Compute a strategy under its compute lease, and submit its returns."""

import threading
from collections.abc import Callable

from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import (
    MAX_CACHE_HITS,
    EvidenceRef,
    Heartbeat,
    LeaseFailure,
    SubmissionAck,
)
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.computation import Computed, Report
from qmtl_sdk.runtime.lease import Heartbeats
from qmtl_sdk.runtime.progress import ProgressDisplay


class StoppedError(Exception):
    """The submission was stopped: its task was cancelled, or `Runner.shutdown` was called.

    A KeyboardInterrupt would end the event loop, so it can't be used here.
    """


def compute_under_lease(
    client: GatewayClient,
    ack: SubmissionAck,
    name: str,
    display: ProgressDisplay,
    stop: threading.Event,
    compute: Callable[[Report], Computed],
) -> Computed:
    """Compute while heartbeats keep the lease; release the lease on an error or a stop.

    Raises QmtlError where computing fails, and StoppedError once `stop` is set.
    """
    assert ack.lease is not None  # the caller has checked
    with Heartbeats(client, ack.lease) as heartbeats:

        def report(heartbeat: Heartbeat) -> None:
            heartbeats.report(heartbeat)
            display.show_progress(heartbeat)
            if stop.is_set():
                raise StoppedError

        try:
            return compute(report)
        except QmtlError as error:
            final = error.code != "E_DATASET_CHANGED"
            newest = heartbeats.newest
            message = str(error)[:4000]
            _release(
                client, ack, LeaseFailure(code=error.code, message=message, final=final, progress=newest)
            )
            raise
        except (KeyboardInterrupt, StoppedError):
            newest = heartbeats.newest
            at = f" at {newest.node}, bar {newest.bar} of {newest.bars}" if newest.node else ""
            display.print_line(
                f"Stopped{at}. The outputs so far are cached: submit {name} again to continue."
            )
            message = "stopped by its author"
            _release(
                client, ack, LeaseFailure(code="E_CANCELLED", message=message, final=False, progress=newest)
            )
            raise


def _release(client: GatewayClient, ack: SubmissionAck, failure: LeaseFailure) -> None:
    """Release the lease with a failure. If the Gateway is unavailable, the lease times out instead."""
    assert ack.lease is not None  # only a held lease is released
    try:
        client.fail(ack.lease.lease_id, failure)
    except QmtlError as error:
        if error.code not in ("E_UNAVAILABLE", "E_LEASE_LOST"):
            raise


def submit_returns(client: GatewayClient, ack: SubmissionAck, computed: Computed) -> bool:
    """Upload the returns and complete the lease; return False if the lease had already ended."""
    assert ack.lease is not None  # the caller has computed under it
    data = encode(computed.returns)
    digest = content_hash(data)
    client.put_artifact(digest, data)
    try:
        client.complete(
            ack.lease.lease_id,
            EvidenceRef(
                returns_hash=digest,
                dataset_fingerprint=computed.dataset_fingerprint,
                precheck=computed.precheck,
                cross_context_hits=computed.cross_context_hits[:MAX_CACHE_HITS],
            ),
        )
    except QmtlError as error:
        if error.code == "E_LEASE_LOST":
            return False
        raise
    return True
