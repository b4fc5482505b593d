"""Allocations of worlds, and plans of rebalancings."""

from qmtl_sdk.contracts.allocations import AllocationSnapshot, AllocationUpdate
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from qmtl_sdk.runtime.routes.transport import Transport


class AllocationRoutes(Transport):
    """Allocations of worlds, and plans of rebalancings."""

    def allocations(self) -> AllocationSnapshot:
        return AllocationSnapshot.model_validate(self._call("GET", "/allocations"))

    def set_allocations(self, change: AllocationUpdate) -> AllocationSnapshot:
        return AllocationSnapshot.model_validate(self._call("POST", "/allocations", change))

    def plan_rebalancing(self, request: MultiWorldRebalanceRequest) -> RebalancePlan:
        return RebalancePlan.model_validate(self._call("POST", "/rebalancing/plan", request))
