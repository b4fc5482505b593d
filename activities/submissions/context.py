"""The context of a run, decided before anything is computed: domain, `as_of`, data, costs.

The client's request is only a hint. `as_of` is the close of the newest bar that the world's clock has
reached, unless the client pins an earlier one. It moves only when a bar closes, so two runs in between
share their outputs. The domain follows from the world's decision, and is backtest where there is none.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pydantic import TypeAdapter

from activities.messages.submission import RunContextBody
from activities.submissions.validations import contract_id, resource_policy
from qmtl_sdk.contracts.clocks import declared_clock
from qmtl_sdk.contracts.dag import TAG_QUERY
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope
from qmtl_sdk.contracts.domains import (
    DEFAULT_TTL_S,
    ComputeContext,
    DataScope,
    Domain,
    domain_of,
    resolve_context,
)
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.submission import StrategySubmit
from qmtl_sdk.contracts.worlds import UtcTime, World
from qmtl_sdk.data.presets import bind, fingerprint_of, newest_close


def run_context(
    run_id: str,
    world: World,
    submit: StrategySubmit,
    decision: DecisionEnvelope | None,
    activation: ActivationEnvelope | None,
    wall: datetime,
) -> RunContextBody:
    """Decide the context of a run.

    While the world's decision is fresh, a strategy runs in the stage that it has reached in its world. A
    strategy that is not active is validated.

    Raises QmtlError: those of `bind`, E_DATA_EMPTY, and E_BODY_INVALID where `as_of` is not a time.
    """
    now = world.now(wall)
    shadow = asks_for_shadow(submit)
    decided_at = decision.decided_at if decision else None
    bindings = bind(submit.dag, world.spec)
    pinned = _pinned(submit.meta.as_of)
    until = min(now, pinned) if pinned else now
    newest, laggard, youngest = newest_close(bindings, until)
    as_of = newest or pinned or _last_close(submit, now)
    context = resolve_context(
        DataScope(
            world.spec.world,
            as_of=as_of.isoformat() if as_of else None,
            dataset_fingerprint=fingerprint_of(bindings) if bindings else None,
            clock=declared_clock(submit.dag.nodes),
        ),
        SHADOW if shadow else mode_in_effect(decision, activation),
        decided_at=wall if shadow else decided_at,
        now=wall,
        ttl_s=decision.ttl if decision else DEFAULT_TTL_S,
        allow_live=world.spec.allow_live,
    )
    return RunContextBody(
        run_id=run_id,
        world_id=world.spec.world,
        strategy_id=submit.dag.strategy_id,
        name=submit.meta.name,
        context=context,
        bindings=bindings,
        execution=world.spec.execution,
        data_first=youngest,
        data_last=laggard,
    )


class WorldReader(Protocol):
    """Reads worlds."""

    def world(self, world_id: str) -> World:
        """Raises QmtlError (E_WORLD_UNKNOWN)."""


class PolicyReader(Protocol):
    """Reads policies."""

    def policy(self, world_id: str, version: int | None = None) -> Policy:
        """Raises QmtlError: E_POLICY_MISSING, E_POLICY_UNKNOWN."""


class DecisionReader(Protocol):
    """Reads decisions."""

    def decision(self, world_id: str) -> DecisionEnvelope | None:
        """Read the newest decision of a world."""


class ActivationReader(Protocol):
    """Reads activations."""

    def activations(self, world_id: str, strategy_id: str | None = None) -> list[ActivationEnvelope]:
        """Read the activations of a world's strategies, or of one strategy."""


@dataclass(frozen=True)
class ContextSources:
    """What the context of a run is decided from."""

    worlds: WorldReader
    policies: PolicyReader
    decisions: DecisionReader
    activations: ActivationReader


_TIME: TypeAdapter[datetime] = TypeAdapter(UtcTime)


class ComputeContextService:
    """Decides the context of a submission.

    Without sources it uses the submission alone, and decides for the safest domain.
    """

    def __init__(self, sources: ContextSources | None) -> None:
        self._sources = sources

    async def build(self, submit: StrategySubmit) -> ComputeContext:
        """Decide the context without starting a run."""
        if self._sources is not None:
            run = await asyncio.to_thread(self.run, "dry-run", submit)
            return run.context
        now = datetime.now(UTC)
        shadow = asks_for_shadow(submit)
        return resolve_context(
            DataScope(submit.world_id, as_of=submit.meta.as_of, clock=declared_clock(submit.dag.nodes)),
            SHADOW if shadow else None,
            decided_at=now if shadow else None,
            now=now,
        )

    def run(self, run_id: str, submit: StrategySubmit) -> RunContextBody:
        """Decide everything about a run.

        Raises QmtlError: as `run_context`, and E_WORLD_UNKNOWN, E_WORLD_ARCHIVED, E_POLICY_MISSING.
        """
        sources = self._sources
        assert sources is not None  # only called where there are worlds
        world = sources.worlds.world(submit.world_id)
        world.require_active()
        policy = sources.policies.policy(submit.world_id)  # a world without a policy accepts no submissions
        activations = sources.activations.activations(submit.world_id, submit.dag.strategy_id)
        decision = sources.decisions.decision(submit.world_id)
        run = run_context(run_id, world, submit, decision, next(iter(activations), None), datetime.now(UTC))
        return run.model_copy(
            update={
                "contract_id": contract_id(world.spec, policy),
                "resource_policy": resource_policy(world.spec),
            }
        )


def mode_in_effect(decision: DecisionEnvelope | None, activation: ActivationEnvelope | None) -> str | None:
    """Return the mode of a strategy's activation.

    `validate` where the world's decision did not activate it, None where the world has no decision.
    """
    if decision is None:
        return None
    return activation.effective_mode if activation is not None and activation.active else "validate"


# The mode of a shadow run.
SHADOW = Domain.SHADOW.value


def asks_for_shadow(submit: StrategySubmit) -> bool:
    """Check whether the client requests a shadow run.

    This hint is followed, because shadow runs send no orders. The Gateway accepts it from operators only.
    """
    return domain_of(submit.meta.execution_domain) is Domain.SHADOW


def _last_close(submit: StrategySubmit, now: datetime) -> datetime | None:
    """Return the newest close of the shortest interval, for a strategy that only reads queues of others."""
    if not any(node.node_type == TAG_QUERY for node in submit.dag.nodes):
        return None
    step = min(node.interval for node in submit.dag.nodes)
    return datetime.fromtimestamp(int(now.timestamp()) // step * step, UTC)


def _pinned(as_of: str | None) -> datetime | None:
    if as_of is None:
        return None
    try:
        return _TIME.validate_python(as_of)
    except ValueError as error:
        raise QmtlError(
            "E_BODY_INVALID",
            f"meta.as_of is {as_of!r}, which is not a time that data can have",
            "write it like 2024-01-31T14:00:00Z",
        ) from error
