"""The Gateway over HTTP, as authors' processes and the command speak to it. Every call may be repeated, and is while the Gateway can't be reached."""

import random
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from qmtl_sdk.contracts.access import NewToken, TokenInfo, TokenRequest
from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus, Approval, ApprovalBody, GateStatus
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope, Explanation
from qmtl_sdk.contracts.errors import CODES, QmtlError
from qmtl_sdk.contracts.orders import Order, OrderBatch, OrderRecord, OrderVerdict, OrderVerdicts
from qmtl_sdk.contracts.plans import ApplyPlan
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.policy_text import Difference
from qmtl_sdk.contracts.promotions import PromotionRequest, PromotionView
from qmtl_sdk.contracts.sessions import (
    QueueAppend,
    QueueAppended,
    QueueInfo,
    QueueMessage,
    QueueRead,
    SessionAck,
    SessionAcked,
    SessionGrant,
    SessionHeartbeat,
    SessionInfo,
    SessionLease,
    SessionOpen,
)
from qmtl_sdk.contracts.stream import Subscribe, Subscription
from qmtl_sdk.contracts.submission import (
    DryRun,
    EvidenceRef,
    Heartbeat,
    LeaseFailure,
    StrategyStatus,
    StrategySubmit,
    SubmissionAck,
)
from qmtl_sdk.contracts.worlds import EdgeOverride, World, WorldUpdate

M = TypeVar("M", bound=BaseModel)
_AWAY_LIMIT_S = 30.0
_EXPONENTIAL = wait_exponential(0.1, max=1.0)


class GatewayClient:
    """One connection pool. Raises QmtlError: what the Gateway refuses, under its code; E_UNAVAILABLE when it can't be reached for `away_limit_s`.

    Who asks too often (E_RATE) waits as long as the Gateway says, and asks again.
    """

    def __init__(self, url: str, token: str | None, away_limit_s: float = _AWAY_LIMIT_S) -> None:
        self.url, self.token, self._away_limit_s = url.rstrip("/"), token, away_limit_s
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=self.url, timeout=httpx.Timeout(90.0, connect=5.0), headers=headers, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "GatewayClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # submissions

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

    def heartbeat(self, lease_id: str, beat: Heartbeat) -> None:
        """Tried once: the next beat comes soon, and nobody must wait for this one."""
        self._call("POST", f"/leases/{lease_id}/heartbeat", beat, patience_s=0.0, timeout=10.0)

    def complete(self, lease_id: str, evidence: EvidenceRef) -> None:
        self._call("POST", f"/leases/{lease_id}/complete", evidence)

    def fail(self, lease_id: str, failure: LeaseFailure) -> None:
        self._call("POST", f"/leases/{lease_id}/fail", failure)

    def put_artifact(self, content_hash: str, data: bytes) -> None:
        self._call("PUT", f"/artifacts/{content_hash}", content=data)

    def artifact(self, content_hash: str) -> bytes:
        return self._send("GET", f"/artifacts/{content_hash}").content

    # worlds

    def create_world(
        self, spec: dict[str, Any], policy: dict[str, Any] | None = None, live: bool = False
    ) -> dict[str, Any]:
        """Create a world; return it with a report on its data. A spec with `allow_live` needs `live`."""
        created: dict[str, Any] = self._call(
            "POST", "/worlds", json={"spec": spec, "policy": policy}, headers=_live(live)
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
                headers=_live(live),
            )
        )

    def fingerprints(self, world_id: str) -> list[str]:
        """Of the data that the newest evidence of the world's strategies was judged on."""
        found: list[str] = self._call("GET", f"/worlds/{world_id}/fingerprints")
        return found

    def explain(self, world_id: str, strategy_id: str) -> Explanation:
        return Explanation.model_validate(self._call("GET", f"/worlds/{world_id}/explain/{strategy_id}"))

    # policies

    def add_policy(self, world_id: str, policy: dict[str, Any]) -> Policy:
        return Policy.model_validate(self._call("POST", f"/worlds/{world_id}/policies", json=policy))

    def set_default_policy(self, world_id: str, version: int) -> Policy:
        return Policy.model_validate(self._call("POST", f"/worlds/{world_id}/policies/{version}/set-default"))

    def diff_policies(self, world_id: str, version: int, to: int) -> list[Difference]:
        return TypeAdapter(list[Difference]).validate_python(
            self._call("GET", f"/worlds/{world_id}/policies/{version}/diff", params={"to": to})
        )

    def replay_policy(
        self, world_id: str, policy: dict[str, Any], since: str | None = None
    ) -> dict[str, Any]:
        """Which past decisions the draft would have made otherwise."""
        found: dict[str, Any] = self._call(
            "POST", f"/worlds/{world_id}/policies/replay", json={"policy": policy, "since": since}
        )
        return found

    # applies and the gate

    def apply(self, world_id: str, request: ApplyRequest, live: bool = False) -> ApplyStatus:
        return ApplyStatus.model_validate(
            self._call("POST", f"/worlds/{world_id}/apply", json=request.json_dict(), headers=_live(live))
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
        """The apply; with `wait_s`, once it has ended, or as it is after so long."""
        return ApplyStatus.model_validate(
            self._call("GET", f"/worlds/{world_id}/applies/{run_id}", params={"wait": wait_s})
        )

    def promote(self, world_id: str, request: PromotionRequest, live: bool = False) -> PromotionView:
        return PromotionView.model_validate(
            self._call(
                "POST", f"/worlds/{world_id}/promotions", json=request.json_dict(), headers=_live(live)
            )
        )

    def promotions(self, world_id: str) -> list[PromotionView]:
        """Those that are under way."""
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
                headers=_live(live),
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

    def gate(self, world_id: str) -> GateStatus:
        return GateStatus.model_validate(self._call("GET", f"/worlds/{world_id}/gate"))

    def halt(self, world_id: str, reason: str = "") -> GateStatus:
        return GateStatus.model_validate(
            self._call("POST", f"/worlds/{world_id}/halt", json={"reason": reason})
        )

    def resume(self, world_id: str, reason: str = "") -> dict[str, Any]:
        """What was lifted, and the gate."""
        found: dict[str, Any] = self._call("POST", f"/worlds/{world_id}/resume", json={"reason": reason})
        return found

    def overrides(self, world_id: str) -> list[EdgeOverride]:
        return TypeAdapter(list[EdgeOverride]).validate_python(
            self._call("GET", f"/worlds/{world_id}/edges/overrides")
        )

    def override(self, world_id: str, edge: EdgeOverride) -> EdgeOverride:
        return EdgeOverride.model_validate(self._call("POST", f"/worlds/{world_id}/edges/overrides", edge))

    def audit(self, world_id: str, after: int = 0, limit: int = 100, verify: bool = False) -> dict[str, Any]:
        """Entries of the audit trail, oldest first; with `verify`, over how many of them the chain was found whole."""
        found: dict[str, Any] = self._call(
            "GET", f"/worlds/{world_id}/audit", params={"after": after, "limit": limit, "verify": verify}
        )
        return found

    # orders

    def publish_orders(self, orders: Sequence[Order], patience_s: float | None = None) -> list[OrderVerdict]:
        """A verdict for each. May be repeated: an order id is answered once."""
        return list(
            OrderVerdicts.model_validate(
                self._call("POST", "/orders", OrderBatch(orders=tuple(orders)), patience_s=patience_s)
            ).verdicts
        )

    def orders(
        self, world_id: str, after: int = 0, limit: int = 100, reason: str | None = None
    ) -> list[OrderRecord]:
        params = {
            "world_id": world_id,
            "after": after,
            "limit": limit,
            **({"reason": reason} if reason else {}),
        }
        return TypeAdapter(list[OrderRecord]).validate_python(self._call("GET", "/orders", params=params))

    # running strategies

    def open_session(self, wanted: SessionOpen, patience_s: float | None = None) -> SessionGrant:
        return SessionGrant.model_validate(self._call("POST", "/sessions", wanted, patience_s=patience_s))

    def session_beat(self, session_id: str, beat: SessionHeartbeat) -> SessionLease:
        """Tried once: the next beat comes soon."""
        return SessionLease.model_validate(
            self._call("POST", f"/sessions/{session_id}/heartbeat", beat, patience_s=0.0, timeout=10.0)
        )

    def end_session(self, session_id: str, reason: str, patience_s: float | None = None) -> SessionInfo:
        return SessionInfo.model_validate(
            self._call("DELETE", f"/sessions/{session_id}", params={"reason": reason}, patience_s=patience_s)
        )

    def ack_session(self, session_id: str, sequence: int) -> bool:
        """Say that a freeze or unfreeze was acted on; whether an apply was still waiting for it."""
        return SessionAcked.model_validate(
            self._call("POST", f"/sessions/{session_id}/ack", SessionAck(sequence=sequence), patience_s=2.0)
        ).in_time

    def sessions(self, world_id: str | None = None, ended: bool = False) -> list[SessionInfo]:
        params = {"ended": ended, **({"world_id": world_id} if world_id else {})}
        return TypeAdapter(list[SessionInfo]).validate_python(self._call("GET", "/sessions", params=params))

    # queues

    def queues_by_tag(
        self, tags: Sequence[str], interval: int, match_mode: str, world_id: str, execution_domain: str
    ) -> list[QueueInfo]:
        params = {
            "tags": ",".join(tags),
            "interval": interval,
            "match_mode": match_mode,
            "world_id": world_id,
            "execution_domain": execution_domain,
        }
        return TypeAdapter(list[QueueInfo]).validate_python(
            self._call("GET", "/queues/by_tag", params=params)
        )

    def queue_append(self, topic: str, messages: Sequence[QueueMessage]) -> int:
        return QueueAppended.model_validate(
            self._call("POST", f"/queues/{topic}/messages", QueueAppend(messages=tuple(messages)))
        ).added

    def queue_read(self, topic: str, after: int, limit: int = 1000, last: bool = False) -> QueueRead:
        return QueueRead.model_validate(
            self._call(
                "GET", f"/queues/{topic}/messages", params={"after": after, "limit": limit, "last": last}
            )
        )

    # events

    def subscribe(self, wanted: Subscribe, patience_s: float | None = None) -> Subscription:
        return Subscription.model_validate(
            self._call("POST", "/events/subscribe", wanted, patience_s=patience_s)
        )

    def activation_hash(self, world_id: str) -> str:
        return str(self._call("GET", f"/worlds/{world_id}/activation/state_hash")["state_hash"])

    # tokens

    def create_token(self, wanted: TokenRequest) -> NewToken:
        return NewToken.model_validate(self._call("POST", "/tokens", wanted))

    def tokens(self) -> list[TokenInfo]:
        return TypeAdapter(list[TokenInfo]).validate_python(self._call("GET", "/tokens"))

    def revoke_token(self, token_id: str) -> TokenInfo:
        return TokenInfo.model_validate(self._call("DELETE", f"/tokens/{token_id}"))

    def rotate_keys(self, overlap_s: int) -> dict[str, Any]:
        found: dict[str, Any] = self._call("POST", "/tokens/rotate", params={"overlap_s": overlap_s})
        return found

    # the Gateway itself

    def health(self) -> dict[str, Any]:
        """Also when it says that it is degraded."""
        found: dict[str, Any] = self._http.get("/health").json()
        return found

    def gateway_status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", "/status")
        return found

    def _call(self, method: str, path: str, body: BaseModel | None = None, **options: Any) -> Any:
        if body is not None:
            options["content"] = body.model_dump_json()
            options["headers"] = {"content-type": "application/json"}
        response = self._send(method, path, **options)
        return response.json() if response.content else None

    def _send(
        self, method: str, path: str, patience_s: float | None = None, **options: Any
    ) -> httpx.Response:
        stop = stop_after_delay(self._away_limit_s if patience_s is None else patience_s)
        try:
            for attempt in Retrying(retry=retry_if_exception(_away), wait=_pause, stop=stop, reraise=True):
                with attempt:
                    response = self._http.request(method, path, **options)
                    if response.is_error:
                        raise _refusal(response)
        except httpx.TransportError as error:
            raise QmtlError(
                "E_UNAVAILABLE",
                f"the Gateway at {self.url} can't be reached: {error}",
                "qmtl status shows what runs; qmtl up starts it",
            ) from error
        return response


def _live(live: bool) -> dict[str, str]:
    return {"X-Allow-Live": "true"} if live else {}


def _away(error: BaseException) -> bool:
    return isinstance(error, httpx.TransportError) or (
        isinstance(error, QmtlError) and error.code in ("E_UNAVAILABLE", "E_RATE")
    )


def _pause(state: RetryCallState) -> float:
    """As long as the Gateway asks for, else longer each time."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, QmtlError) and "retry_after" in error.details:
        return min(5.0, float(error.details["retry_after"]) * random.uniform(1, 2))  # noqa: S311  so that those who were refused together don't come back together
    return _EXPONENTIAL(state)


def _refusal(response: httpx.Response) -> QmtlError:
    try:
        body = response.json()
        code = body["code"] if body["code"] in CODES else "E_INTERNAL"
        return QmtlError(code, body["detail"], body.get("remedy", ""), **body.get("details", {}))
    except (ValueError, KeyError, TypeError):
        return QmtlError(
            "E_INTERNAL",
            f"the Gateway answered {response.status_code} without a problem document",
            "check that gateway.url names a QMTL Gateway",
        )
