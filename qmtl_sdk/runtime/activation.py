"""Decide whether a running strategy may send orders, from the events of its world's stream.

The gate is open only if all of this holds: the stream delivered a frame within the decision's TTL, the newest
decision is fresh, the world is neither frozen nor halted, the strategy is active in dryrun or live, in the
domain of its session, the session holds its lease, and the strategy's data can be read. A closed gate gives
its reason. In shadow it never opens.

The fence checks every order again. The gate saves it the orders that the fence would refuse.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from qmtl_sdk.contracts.decisions import WHOLE_WORLD, ActivationEnvelope
from qmtl_sdk.contracts.domains import DEFAULT_TTL_S, Domain, domain_of, stage_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.runtime.stream import StreamClient


class ActivationManager:
    """Reads the activation of one strategy from the state of its world's stream."""

    def __init__(self, stream: StreamClient, world_id: str, strategy_id: str) -> None:
        self.world_id = world_id
        self._stream = stream
        self._strategy_id = strategy_id

    @property
    def activation(self) -> ActivationEnvelope | None:
        """The strategy's newest activation; None before its first decision."""
        event = self._stream.states["activation"].events.get(self._strategy_id)
        return ActivationEnvelope.model_validate(event.data) if event is not None else None

    @property
    def world(self) -> ActivationEnvelope | None:
        """The world's newest freeze, unfreeze or halt; None if there was none."""
        event = self._stream.states["activation"].events.get(WHOLE_WORLD)
        return ActivationEnvelope.model_validate(event.data) if event is not None else None

    @property
    def epoch(self) -> int:
        """The fencing epoch that orders carry."""
        world = self.world
        return world.epoch if world is not None else 1

    @property
    def domain(self) -> Domain | None:
        """The domain that the strategy is active in; None if it is not active."""
        activation = self.activation
        return (
            domain_of(activation.effective_mode)
            if activation is not None and activation.active_in_effect
            else None
        )

    @property
    def decided_at(self) -> datetime | None:
        """When the newest decision was made; None before the first."""
        event = self._stream.states["decisions"].events.get(self.world_id)
        return (
            datetime.fromisoformat(str(event.data["decided_at"]))
            if event is not None and event.data and "decided_at" in event.data
            else None
        )

    @property
    def ttl_s(self) -> float:
        """How long (seconds) the newest decision stays valid."""
        event = self._stream.states["decisions"].events.get(self.world_id)
        return (
            float(event.data.get("ttl", DEFAULT_TTL_S))
            if event is not None and event.data
            else float(DEFAULT_TTL_S)
        )

    @property
    def failure(self) -> str:
        """Why the stream has ended for good; empty while it is read."""
        return self._stream.fault if self._stream.failure is not None else ""

    @property
    def silence_s(self) -> float:
        """Seconds since the Gateway's last frame; infinite before the first."""
        return time.monotonic() - self._stream.last_frame_at


@dataclass
class OrderGate:
    """The order gate of a running strategy.

    `reason` is empty when the gate is open. `faults` holds the running strategy's own reasons to close it, by
    kind.
    """

    manager: ActivationManager
    shadow: bool = False
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    domain: Domain | None = None
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether orders may be sent."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the gate is closed; empty if it is open."""
        if self.shadow:
            return "shadow: orders are off"
        faults = list(self.faults.values())  # a copy: other threads add and remove faults
        if faults:
            return faults[0]
        if self.manager.failure:
            return self.manager.failure
        silence, ttl = self.manager.silence_s, self.manager.ttl_s
        if silence > ttl:
            if silence == float("inf"):
                return "the event stream has delivered nothing yet"
            return (
                f"the event stream has delivered nothing for {format_duration(silence)}, "
                f"longer than the decision's ttl of {format_duration(ttl)}"
            )
        decided_at = self.manager.decided_at
        if decided_at is not None and (age := (self.clock() - decided_at).total_seconds()) > ttl:
            return f"the newest decision is {format_duration(age)} old, its ttl is {format_duration(ttl)}"
        world = self.manager.world
        if world is not None and not world.active:
            if world.halted:
                return "the world is halted"
            return f"the world is {'draining' if world.drain else 'frozen'}"
        activation = self.manager.activation
        if activation is None:
            return "the world has not decided about the strategy"
        if activation.halted:
            return "the strategy is halted"
        if activation.freeze or activation.drain:
            return f"the world is {'frozen' if activation.freeze else 'draining'}"
        if not activation.active:
            return "the strategy is not active"
        if domain_of(activation.effective_mode) not in (Domain.DRYRUN, Domain.LIVE):
            return f"the strategy's stage is {stage_of(activation.effective_mode)}"
        if self.domain is not None and domain_of(activation.effective_mode) is not self.domain:
            return (
                f"the strategy's stage is {stage_of(activation.effective_mode)}, "
                f"its session computes in {self.domain.value}"
            )
        return ""
