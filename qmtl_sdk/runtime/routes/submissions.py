"""Submissions, their leases and their artifacts."""

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
        return SubmissionAck.model_validate(self._call("POST", "/strategies", submission))

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
