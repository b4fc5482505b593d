"""A world's policies: versions, the default, differences, and the replay of a draft."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query

from activities.decisions.correlation import Correlations
from activities.decisions.whatif import PolicyReplayResult, replay
from api.auth.access import CurrentCaller, GuardedRoute
from api.auth.limits import OneAtATime
from api.state import State
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.policy_text import Difference, differences, policy_from

router = APIRouter(prefix="/worlds/{world_id}/policies", tags=["policies"], route_class=GuardedRoute)
Version = Annotated[int, Path(ge=1, lt=2**31)]
# A replay over many decisions takes minutes of a processor: a rate alone would let a caller have dozens.
_REPLAYS = OneAtATime("policy replay")
_POLICY = {"preset": "moderate", "selection": {"topk": {"total": 3}}}


class PolicyReplay(Model):
    """A draft policy. `since`: replay decisions made at or after this time; None: all that are stored."""

    policy: dict[str, Any]
    since: datetime | None = None


@router.post("", status_code=201, summary="Add a policy version, which becomes the default")
def add_policy(
    world_id: str,
    body: Annotated[dict[str, Any], Body(openapi_examples={"a preset, changed": {"value": _POLICY}})],
    state: State,
    caller: CurrentCaller,
) -> Policy:
    """An invalid policy is refused, and the default stays. A looser one may wait for approvals."""
    return state.stores.rule_changes.add_policy(world_id, policy_from(body), caller.subject, caller.token_id)


@router.get("", summary="List all policy versions, oldest first")
def list_policies(world_id: str, state: State) -> list[Policy]:
    return state.stores.policies.policies(world_id)


@router.get("/{version}", summary="Show a policy version")
def show_policy(world_id: str, version: Version, state: State) -> Policy:
    return state.stores.policies.policy(world_id, version)


@router.post("/{version}/set-default", summary="Make a version the default")
def set_default(world_id: str, version: Version, state: State, caller: CurrentCaller) -> Policy:
    return state.stores.rule_changes.set_default(world_id, version, caller.subject, caller.token_id)


@router.get("/{version}/diff", summary="Show the differences between two versions")
def diff(
    world_id: str, version: Version, state: State, to: Annotated[int, Query(ge=1, lt=2**31)]
) -> list[Difference]:
    return differences(
        state.stores.policies.policy(world_id, version), state.stores.policies.policy(world_id, to)
    )


@router.post("/replay", summary="Replay recorded decisions with a draft policy; nothing is written")
def replay_policy(
    world_id: str, body: PolicyReplay, state: State, caller: CurrentCaller
) -> PolicyReplayResult:
    draft = policy_from(body.policy)
    state.stores.worlds.world(world_id)
    correlations = Correlations(state.stores.artifacts)
    with _REPLAYS.held(caller.subject):
        past = [
            (envelope, inputs, correlations.checked(draft, candidates))
            for envelope, inputs, candidates in state.stores.decisions.history(world_id, body.since)
        ]
        all_candidates = [candidate for _, _, candidates in past for candidate in candidates]
        return replay(draft, past, correlations.among(all_candidates))
