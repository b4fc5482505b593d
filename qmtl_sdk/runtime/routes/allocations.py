"""Allocations of worlds, and plans of rebalancings."""

from pydantic import TypeAdapter

from qmtl_sdk.contracts.allocations import AllocationSnapshot, AllocationUpdate
from qmtl_sdk.contracts.applies import Approval, ApprovalBody
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan
from qmtl_sdk.contracts.rebalance_runs import (
    RebalanceApply,
    RebalanceExecute,
    RebalanceExecution,
    RebalanceStatus,
)
from qmtl_sdk.contracts.rebalance_schedules import RebalanceSchedule, RebalanceScheduleBody
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from qmtl_sdk.runtime.routes.transport import Transport, live_header


class AllocationRoutes(Transport):
    """Allocations of worlds, and plans of rebalancings."""

    def allocations(self) -> AllocationSnapshot:
        return AllocationSnapshot.model_validate(self._call("GET", "/allocations"))

    def set_allocations(self, change: AllocationUpdate) -> AllocationSnapshot:
        return AllocationSnapshot.model_validate(self._call("POST", "/allocations", change))

    def plan_rebalancing(self, request: MultiWorldRebalanceRequest) -> RebalancePlan:
        return RebalancePlan.model_validate(self._call("POST", "/rebalancing/plan", request))

    def apply_rebalancing(self, asked: RebalanceApply, live: bool = False) -> RebalanceStatus:
        """Request a run. The same run id with the same body is the same run."""
        found = self._call("POST", "/rebalancing/apply", asked, headers=live_header(live))
        return RebalanceStatus.model_validate(found)

    def execute_rebalancing(self, asked: RebalanceExecute, live: bool = False) -> RebalanceExecution:
        """Return the trades of a request; with `submit` they are carried out."""
        found = self._call("POST", "/rebalancing/execute", asked, headers=live_header(live))
        return RebalanceExecution.model_validate(found)

    def rebalancings(self, limit: int = 20) -> list[RebalanceStatus]:
        """List runs, newest first, without their plans and trades."""
        found = self._call("GET", "/rebalancing/runs", params={"limit": limit})
        return TypeAdapter(list[RebalanceStatus]).validate_python(found)

    def rebalancing(self, run_id: str, wait_s: float = 0.0) -> RebalanceStatus:
        """Return a run, waiting up to `wait_s` seconds for it to end."""
        return RebalanceStatus.model_validate(
            self._call("GET", f"/rebalancing/runs/{run_id}", params={"wait": wait_s})
        )

    def approve_rebalancing(self, run_id: str, body: ApprovalBody, live: bool = False) -> Approval:
        return Approval.model_validate(
            self._call("POST", f"/rebalancing/runs/{run_id}/approve", body, headers=live_header(live))
        )

    def reject_rebalancing(self, run_id: str, body: ApprovalBody) -> Approval:
        return Approval.model_validate(self._call("POST", f"/rebalancing/runs/{run_id}/reject", body))

    def abort_rebalancing(self, run_id: str, reason: str = "") -> RebalanceStatus:
        return RebalanceStatus.model_validate(
            self._call("POST", f"/rebalancing/runs/{run_id}/abort", json={"reason": reason})
        )

    def rebalance_schedules(self) -> list[RebalanceSchedule]:
        """List schedules of rebalancings, with what their newest firings decided."""
        found = self._call("GET", "/rebalancing/schedules")
        return TypeAdapter(list[RebalanceSchedule]).validate_python(found)

    def rebalance_schedule(self, name: str) -> RebalanceSchedule:
        return RebalanceSchedule.model_validate(self._call("GET", f"/rebalancing/schedules/{name}"))

    def set_rebalance_schedule(
        self, name: str, body: RebalanceScheduleBody, live: bool = False
    ) -> RebalanceSchedule:
        """Set a schedule, or replace it; safe to repeat."""
        found = self._call("PUT", f"/rebalancing/schedules/{name}", body, headers=live_header(live))
        return RebalanceSchedule.model_validate(found)

    def remove_rebalance_schedule(self, name: str) -> None:
        self._call("DELETE", f"/rebalancing/schedules/{name}")
