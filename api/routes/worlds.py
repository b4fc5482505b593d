"""Worlds and their decisions, activations and strategies."""

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from pydantic import Field

from activities.applies.explain import explain as explain_strategy
from activities.decisions.activities import DecisionActivities
from api.auth.access import CurrentCaller, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import Role, visible
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope, Explanation
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.worlds import BindingInfo, World, WorldNodeRef, WorldSpec, WorldUpdate
from qmtl_sdk.data.inspection import inspect_world

router = APIRouter(prefix="/worlds", tags=["worlds"], route_class=GuardedRoute)
_WORLD = {
    "world": "us_equities",
    "clock": {"replay": {"start": "2017-12-30", "speed": 1}},
    "data": {
        "presets": [
            {
                "name": "prices",
                "source": "parquet",
                "path": "sample:us_equities_1d.parquet",
                "interval": "1d",
                "calendar": "XNYS",
                "streams": {"AAPL": ["AAPL", "price"], "MSFT": ["MSFT", "price"]},
            }
        ]
    },
    "execution": {"fee_bps": 1, "slippage_bps": 1},
}
_POLICY = {"preset": "moderate", "selection": {"topk": {"total": 3}}}


class WorldCreate(Model):
    """A world's spec, and the first version of its policy if it has one. (Any: JSON, validated later.)"""

    spec: dict[str, Any]
    policy: dict[str, Any] | None = None


class WorldCreated(Model):
    """The world, and a report on its data by preset."""

    world: World
    data: dict[str, dict[str, Any]]


class DecideRequest(Model):
    """Idempotent: the same key gets the same decision."""

    idempotency_key: str = Field(default_factory=lambda: uuid.uuid4().hex, min_length=8, max_length=128)
    reason: str = Field("requested by a person", max_length=200)


@router.post("", status_code=201, summary="Create a world")
def create(
    body: Annotated[
        WorldCreate, Body(openapi_examples={"US equities": {"value": {"spec": _WORLD, "policy": _POLICY}}})
    ],
    state: State,
    caller: CurrentCaller,
) -> WorldCreated:
    """Read all data of the world once, so that errors in it show now. Idempotent for an equal spec.

    A world with `allow_live` needs the live header.
    """
    spec: WorldSpec = validated(WorldSpec, body.spec, "E_WORLD_INVALID", "world")
    caller.require_role(spec.world, Role.OPERATOR)
    if spec.allow_live:
        caller.require_live(spec.world)
    policy = policy_from(body.policy) if body.policy is not None else None
    now = datetime.now(UTC)
    report = inspect_world(spec, spec.clock.now(now, now))
    return WorldCreated(world=state.stores.fence.create(spec, policy, caller.subject), data=report)


@router.get("", summary="List the worlds that the caller may read, oldest first")
def list_worlds(state: State, caller: CurrentCaller) -> list[World]:
    found = {world.spec.world: world for world in state.stores.worlds.worlds()}
    return [found[name] for name in visible(caller, found)]


@router.get("/{world_id}", summary="Show a world")
def show(world_id: str, state: State) -> World:
    return state.stores.worlds.world(world_id)


@router.patch("/{world_id}", summary="Change the given fields of a world")
def update(world_id: str, body: WorldUpdate, state: State, caller: CurrentCaller) -> World:
    """Allowing live needs the live header. New data is read once, so that errors in it show now."""
    if body.allow_live:
        caller.require_live(world_id)
    if body.data is not None:
        world = state.stores.worlds.world(world_id)
        inspect_world(world.spec.model_copy(update={"data": body.data}), world.now(datetime.now(UTC)))
    state.stores.rule_changes.update_world(world_id, body, caller.subject, caller.token_id)
    return state.stores.worlds.world(world_id)


@router.delete("/{world_id}", summary="Archive a world: halt it and accept nothing more; its records stay")
def archive(world_id: str, state: State, caller: CurrentCaller) -> World:
    """Idempotent. Nothing is deleted; `PATCH` with `state: active` takes it back, and its halt stays."""
    if state.stores.worlds.world(world_id).state == "active":
        change = WorldUpdate(state="archived")
        state.stores.rule_changes.update_world(world_id, change, caller.subject, caller.token_id)
    return state.stores.worlds.world(world_id)


@router.get(
    "/{world_id}/bindings", summary="List the strategies that were submitted to a world, oldest first"
)
def bindings(world_id: str, state: State) -> list[BindingInfo]:
    return state.stores.worlds.bindings(world_id)


@router.get(
    "/{world_id}/fingerprints", summary="List the fingerprints of the data behind the newest evidence"
)
def fingerprints(world_id: str, state: State) -> list[str]:
    """A policy pins one of these as `gating_policy.dataset_fingerprint`."""
    now = state.stores.worlds.world(world_id).now(datetime.now(UTC))
    return sorted(
        {
            item.dataset_fingerprint
            for item in state.stores.decisions.candidates(world_id, now)
            if item.dataset_fingerprint
        }
    )


@router.get("/{world_id}/nodes", summary="List the nodes of a world with their state by domain")
def nodes(world_id: str, state: State, execution_domain: Domain | None = None) -> list[WorldNodeRef]:
    return state.stores.worlds.nodes(world_id, execution_domain.value if execution_domain else None)


@router.get(
    "/{world_id}/explain/{strategy_id}", summary="Show a strategy's stage and what stops it from the next"
)
def explain(world_id: str, strategy_id: str, state: State) -> Explanation:
    return explain_strategy(
        strategy_id,
        state.stores.apply_requests.planning_context(world_id),
        state.stores.decisions.hysteresis_states(world_id),
    )


@router.post("/{world_id}/decide", summary="Judge the world now")
async def decide(
    world_id: str, state: State, caller: CurrentCaller, body: DecideRequest | None = None
) -> DecisionEnvelope:
    request = body or DecideRequest()
    await asyncio.to_thread(state.stores.policies.policy, world_id)
    return await state.submissions.decide(
        world_id, f"decide:{world_id}:{request.idempotency_key}", request.reason, caller.subject
    )


@router.post("/{world_id}/evaluate", summary="Show what a judgment would decide now; nothing is written")
def evaluate(world_id: str, state: State) -> DecisionEnvelope:
    return DecisionActivities(state.stores.for_decisions).evaluated(world_id)


@router.get("/{world_id}/decisions", summary="List decisions, newest first")
def decisions(
    world_id: str, state: State, limit: Annotated[int, Query(ge=1, le=100)] = 10
) -> list[DecisionEnvelope]:
    state.stores.worlds.world(world_id)
    return state.stores.decisions.decisions(world_id, limit)


@router.get("/{world_id}/activation", summary="List the activations of a world")
def activation(world_id: str, state: State, strategy_id: str | None = None) -> list[ActivationEnvelope]:
    state.stores.worlds.world(world_id)
    found = state.stores.fence.activations(world_id, strategy_id)
    if strategy_id is not None and not found:
        raise QmtlError(
            "E_DECISION_UNKNOWN",
            f"world {world_id} has not judged {strategy_id[:80]}",
            "submit the strategy to this world",
        )
    return found


class ActivationHash(Model):
    """The hash of a world's activations after `sequence` changes; an up-to-date subscriber has the same."""

    world_id: str
    sequence: int
    state_hash: str


@router.get("/{world_id}/activation/state_hash", summary="Get the hash of a world's activations")
def activation_hash(world_id: str, state: State) -> ActivationHash:
    sequence, found = state.stores.fence.activation_hash(world_id)
    return ActivationHash(world_id=world_id, sequence=sequence, state_hash=found)
