"""Submissions, their leases and their artifacts."""

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import (
    DryRun,
    EvidenceRef,
    Heartbeat,
    LeaseFailure,
    StrategyStatus,
    StrategySubmit,
    SubmissionAck,
)
from qmtl_sdk.runtime.routes.transport import Transport


class SubmissionRoutes(Transport):
    """Submissions, their leases and their artifacts."""

    def submit(self, submission: StrategySubmit) -> SubmissionAck:
        """Submit. Raises QmtlError (E_CHECKSUM_MISMATCH) where the answer is about other nodes."""
        ack = SubmissionAck.model_validate(self._call("POST", "/strategies", submission))
        if ack.node_ids_crc32 != submission.node_ids_crc32:
            raise QmtlError(
                "E_CHECKSUM_MISMATCH",
                f"the Gateway answers about NodeIDs with the CRC {ack.node_ids_crc32}; "
                f"this strategy's is {submission.node_ids_crc32}",
                "submit again; if it persists, SDK and Gateway are of different versions",
                expected=submission.node_ids_crc32,
                received=ack.node_ids_crc32,
            )
        return ack

    def dry_run(self, submission: StrategySubmit) -> DryRun:
        return DryRun.model_validate(self._call("POST", "/strategies/dry-run", submission))

    def status(
        self, strategy_id: str, world_id: str, run_id: str | None = None, wait_s: float = 0.0
    ) -> StrategyStatus:
        params = {"world_id": world_id, "wait": wait_s, **({"run_id": run_id} if run_id else {})}
        return StrategyStatus.model_validate(
            self._call("GET", f"/strategies/{strategy_id}/status", params=params)
        )

    def heartbeat(self, lease_id: str, report: Heartbeat) -> None:
        """Send one heartbeat without retrying: the next one follows soon."""
        self._call("POST", f"/leases/{lease_id}/heartbeat", report, patience_s=0.0, timeout=10.0)

    def complete(self, lease_id: str, evidence: EvidenceRef) -> None:
        self._call("POST", f"/leases/{lease_id}/complete", evidence)

    def fail(self, lease_id: str, failure: LeaseFailure) -> None:
        self._call("POST", f"/leases/{lease_id}/fail", failure)

    def put_artifact(self, content_hash: str, data: bytes) -> None:
        self._call("PUT", f"/artifacts/{content_hash}", content=data)

    def artifact(self, content_hash: str) -> bytes:
        return self._send("GET", f"/artifacts/{content_hash}").content
