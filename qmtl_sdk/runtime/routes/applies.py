"""Applies, promotions, approvals and the fence of a world."""

from typing import Any

from pydantic import TypeAdapter

from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus, Approval, ApprovalBody, FenceStatus
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.plans import ApplyPlan
from qmtl_sdk.contracts.promotions import PromotionRequest, PromotionView
from qmtl_sdk.runtime.routes.transport import Transport, live_header


class ApplyRoutes(Transport):
    """Applies, promotions, approvals and the fence of a world."""

    def apply(self, world_id: str, request: ApplyRequest, live: bool = False) -> ApplyStatus:
        return ApplyStatus.model_validate(
            self._call(
                "POST", f"/worlds/{world_id}/apply", json=request.json_dict(), headers=live_header(live)
            )
        )

    def plan_apply(self, world_id: str, request: ApplyRequest) -> ApplyPlan:
        return ApplyPlan.model_validate(
            self._call("POST", f"/worlds/{world_id}/apply/plan", json=request.json_dict())
        )

    def applies(self, world_id: str, limit: int = 20) -> list[ApplyStatus]:
        return TypeAdapter(list[ApplyStatus]).validate_python(
            self._call("GET", f"/worlds/{world_id}/applies", params={"limit": limit})
        )

    def apply_status(self, world_id: str, run_id: str, wait_s: float = 0.0) -> ApplyStatus:
        """Return the apply, waiting up to `wait_s` seconds for it to end."""
        return ApplyStatus.model_validate(
            self._call("GET", f"/worlds/{world_id}/applies/{run_id}", params={"wait": wait_s})
        )

    def promote(self, world_id: str, request: PromotionRequest, live: bool = False) -> PromotionView:
        return PromotionView.model_validate(
            self._call(
                "POST", f"/worlds/{world_id}/promotions", json=request.json_dict(), headers=live_header(live)
            )
        )

    def promotions(self, world_id: str) -> list[PromotionView]:
        """List the promotions that have not ended."""
        return TypeAdapter(list[PromotionView]).validate_python(
            self._call("GET", f"/worlds/{world_id}/promotions")
        )

    def promotion(self, world_id: str, strategy_id: str) -> PromotionView:
        return PromotionView.model_validate(self._call("GET", f"/worlds/{world_id}/promotions/{strategy_id}"))

    def end_promotion(self, world_id: str, strategy_id: str, reason: str = "") -> PromotionView:
        return PromotionView.model_validate(
            self._call("POST", f"/worlds/{world_id}/promotions/{strategy_id}/end", json={"reason": reason})
        )

    def approve(self, world_id: str, run_id: str, verdict: ApprovalBody, live: bool = False) -> Approval:
        return Approval.model_validate(
            self._call(
                "POST",
                f"/worlds/{world_id}/applies/{run_id}/approve",
                json=verdict.json_dict(),
                headers=live_header(live),
            )
        )

    def reject(self, world_id: str, run_id: str, verdict: ApprovalBody) -> Approval:
        return Approval.model_validate(
            self._call("POST", f"/worlds/{world_id}/applies/{run_id}/reject", json=verdict.json_dict())
        )

    def abort(self, world_id: str, run_id: str, reason: str = "") -> ApplyStatus:
        return ApplyStatus.model_validate(
            self._call("POST", f"/worlds/{world_id}/applies/{run_id}/abort", json={"reason": reason})
        )

    def fence(self, world_id: str) -> FenceStatus:
        return FenceStatus.model_validate(self._call("GET", f"/worlds/{world_id}/fence"))

    def halt(self, world_id: str, reason: str = "", strategy: str | None = None) -> FenceStatus:
        """Halt a world, or one of its strategies."""
        body = {"reason": reason, "strategy": strategy}
        return FenceStatus.model_validate(self._call("POST", f"/worlds/{world_id}/halt", json=body))

    def halt_all(self, reason: str = "") -> list[str]:
        """Halt every world in which the token is an operator's; return their ids."""
        found = self._call("POST", "/halt", json={"reason": reason})["worlds"]
        return TypeAdapter(list[str]).validate_python(found)

    def resume(self, world_id: str, reason: str = "", strategy: str | None = None) -> dict[str, Any]:
        """Lift the halt of a world, or of a strategy; return what was lifted and the state of the fence."""
        body = {"reason": reason, "strategy": strategy}
        found: dict[str, Any] = self._call("POST", f"/worlds/{world_id}/resume", json=body)
        return found

    def overrides(self, world_id: str) -> list[EdgeOverride]:
        return TypeAdapter(list[EdgeOverride]).validate_python(
            self._call("GET", f"/worlds/{world_id}/edges/overrides")
        )

    def override(self, world_id: str, edge: EdgeOverride) -> EdgeOverride:
        return EdgeOverride.model_validate(self._call("POST", f"/worlds/{world_id}/edges/overrides", edge))

    def audit(
        self, world_id: str | None, after: int = 0, limit: int = 100, verify: bool = False
    ) -> dict[str, Any]:
        """Return entries of a world's audit trail, or of what belongs to no world, oldest first.

        With `verify`, also return the number of entries over which the hash chain is intact.
        """
        found: dict[str, Any] = self._call(
            "GET",
            f"/worlds/{world_id}/audit" if world_id else "/audit",
            params={"after": after, "limit": limit, "verify": verify},
        )
        return found
