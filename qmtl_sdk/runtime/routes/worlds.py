"""Worlds, their decisions and their policies."""

from typing import Any

from pydantic import TypeAdapter

from qmtl_sdk.contracts.changes import ChangeStatus
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope, Explanation
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.policy_text import Difference
from qmtl_sdk.contracts.worlds import BindingInfo, World, WorldUpdate
from qmtl_sdk.runtime.routes.transport import Transport, live_header


class WorldRoutes(Transport):
    """Worlds, their decisions and their policies."""

    def create_world(
        self, spec: dict[str, Any], policy: dict[str, Any] | None = None, live: bool = False
    ) -> dict[str, Any]:
        """Create a world; return it with a report on its data. A spec with `allow_live` requires `live`."""
        created: dict[str, Any] = self._call(
            "POST", "/worlds", json={"spec": spec, "policy": policy}, headers=live_header(live)
        )
        return created

    def worlds(self) -> list[World]:
        return TypeAdapter(list[World]).validate_python(self._call("GET", "/worlds"))

    def world(self, world_id: str) -> World:
        return World.model_validate(self._call("GET", f"/worlds/{world_id}"))

    def policies(self, world_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", f"/worlds/{world_id}/policies")
        return found

    def decide(self, world_id: str, idempotency_key: str) -> DecisionEnvelope:
        return DecisionEnvelope.model_validate(
            self._call("POST", f"/worlds/{world_id}/decide", json={"idempotency_key": idempotency_key})
        )

    def decisions(self, world_id: str, limit: int = 1) -> list[DecisionEnvelope]:
        return TypeAdapter(list[DecisionEnvelope]).validate_python(
            self._call("GET", f"/worlds/{world_id}/decisions", params={"limit": limit})
        )

    def activation(self, world_id: str) -> list[ActivationEnvelope]:
        return TypeAdapter(list[ActivationEnvelope]).validate_python(
            self._call("GET", f"/worlds/{world_id}/activation")
        )

    def update_world(self, world_id: str, change: WorldUpdate, live: bool = False) -> World:
        return World.model_validate(
            self._call(
                "PATCH",
                f"/worlds/{world_id}",
                json=change.model_dump(mode="json", exclude_none=True),
                headers=live_header(live),
            )
        )

    def bindings(self, world_id: str) -> list[BindingInfo]:
        """List the strategies that were submitted to a world, oldest first."""
        return [
            BindingInfo.model_validate(item) for item in self._call("GET", f"/worlds/{world_id}/bindings")
        ]

    def fingerprints(self, world_id: str) -> list[str]:
        """Return the fingerprints of the data behind the newest evidence of the world's strategies."""
        found: list[str] = self._call("GET", f"/worlds/{world_id}/fingerprints")
        return found

    def explain(self, world_id: str, strategy_id: str) -> Explanation:
        return Explanation.model_validate(self._call("GET", f"/worlds/{world_id}/explain/{strategy_id}"))

    def add_policy(self, world_id: str, policy: dict[str, Any]) -> Policy:
        return Policy.model_validate(self._call("POST", f"/worlds/{world_id}/policies", json=policy))

    def changes(self, world_id: str) -> list[ChangeStatus]:
        """List changes of a world's rules that waited for approvals, newest first."""
        return TypeAdapter(list[ChangeStatus]).validate_python(
            self._call("GET", f"/worlds/{world_id}/changes")
        )

    def approve_change(
        self, world_id: str, change_id: str, reason: str = "", live: bool = False
    ) -> ChangeStatus:
        path = f"/worlds/{world_id}/changes/{change_id}/approve"
        return ChangeStatus.model_validate(
            self._call("POST", path, json={"reason": reason}, headers=live_header(live))
        )

    def reject_change(self, world_id: str, change_id: str, reason: str = "") -> ChangeStatus:
        path = f"/worlds/{world_id}/changes/{change_id}/reject"
        return ChangeStatus.model_validate(self._call("POST", path, json={"reason": reason}))

    def set_default_policy(self, world_id: str, version: int) -> Policy:
        return Policy.model_validate(self._call("POST", f"/worlds/{world_id}/policies/{version}/set-default"))

    def diff_policies(self, world_id: str, version: int, to: int) -> list[Difference]:
        return TypeAdapter(list[Difference]).validate_python(
            self._call("GET", f"/worlds/{world_id}/policies/{version}/diff", params={"to": to})
        )

    def replay_policy(
        self, world_id: str, policy: dict[str, Any], since: str | None = None
    ) -> dict[str, Any]:
        """Return the past decisions that the draft policy would have changed."""
        found: dict[str, Any] = self._call(
            "POST", f"/worlds/{world_id}/policies/replay", json={"policy": policy, "since": since}
        )
        return found
