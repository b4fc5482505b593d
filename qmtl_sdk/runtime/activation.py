"""Whether a running strategy may send orders: what the world's stream says of it, and how fresh that is.

The gate is closed unless everything holds: the stream was heard of within the decision's ttl, the newest decision is fresh, the world is neither frozen nor halted, the strategy
is active for paper or live in the domain that its session computes in, the session holds its lease, and its data is at hand. It says why it is closed. In shadow it never opens.

The fence holds all of this again for every order: the gate spares it what can't pass.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from qmtl_sdk.contracts.decisions import WHOLE_WORLD, ActivationEnvelope
from qmtl_sdk.contracts.domains import DEFAULT_TTL_S, Domain, domain_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.runtime.stream import StreamClient


class ActivationManager:
    """The activation of one strategy, as its world's stream has it."""

    def __init__(self, stream: StreamClient, world_id: str, strategy_id: str) -> None:
        self._stream, self.world_id, self._strategy_id = stream, world_id, strategy_id

    @property
    def activation(self) -> ActivationEnvelope | None:
        event = self._stream.states["activation"].events.get(self._strategy_id)
        return ActivationEnvelope.model_validate(event.data) if event is not None else None

    @property
    def world(self) -> ActivationEnvelope | None:
        """What was last said of the world's gate; None where it was never closed."""
        event = self._stream.states["activation"].events.get(WHOLE_WORLD)
        return ActivationEnvelope.model_validate(event.data) if event is not None else None

    @property
    def epoch(self) -> int:
        """The epoch that orders are made under."""
        world = self.world
        return world.epoch if world is not None else 1

    @property
    def domain(self) -> Domain | None:
        """The domain that the strategy is switched on for; None where it is not."""
        activation = self.activation
        return (
            domain_of(activation.effective_mode)
            if activation is not None and activation.active_in_effect
            else None
        )

    @property
    def decided_at(self) -> datetime | None:
        event = self._stream.states["decisions"].events.get(self.world_id)
        return (
            datetime.fromisoformat(str(event.data["decided_at"]))
            if event is not None and event.data and "decided_at" in event.data
            else None
        )

    @property
    def ttl_s(self) -> float:
        """How long the newest decision may be gone by without being heard of."""
        event = self._stream.states["decisions"].events.get(self.world_id)
        return (
            float(event.data.get("ttl", DEFAULT_TTL_S))
            if event is not None and event.data
            else float(DEFAULT_TTL_S)
        )

    @property
    def silence_s(self) -> float:
        """How long nothing was heard of the Gateway."""
        return time.monotonic() - self._stream.heard_at


@dataclass
class Gate:
    """`reason` is empty when it is open. `faults`: what the running strategy itself has against it, by kind."""

    manager: ActivationManager
    shadow: bool = False
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    domain: Domain | None = None
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        return not self.reason

    @property
    def reason(self) -> str:
        if self.shadow:
            return "shadow: orders are off"
        faults = list(self.faults.values())  # other threads add and take away
        if faults:
            return faults[0]
        silence, ttl = self.manager.silence_s, self.manager.ttl_s
        if silence > ttl:
            return (
                "the stream was never heard"
                if silence == float("inf")
                else f"the stream was not heard for {format_duration(silence)}, longer than the decision's ttl of {format_duration(ttl)}"
            )
        decided_at = self.manager.decided_at
        if decided_at is not None and (age := (self.clock() - decided_at).total_seconds()) > ttl:
            return f"the newest decision is {format_duration(age)} old, its ttl is {format_duration(ttl)}"
        world = self.manager.world
        if world is not None and not world.active:
            return f"the world is {'halted' if world.halted else 'draining' if world.drain else 'frozen'}"
        activation = self.manager.activation
        if activation is None:
            return "the world has not decided about the strategy"
        if activation.freeze or activation.drain:
            return f"the world is {'frozen' if activation.freeze else 'draining'}"
        if not activation.active:
            return "the strategy is not active"
        if domain_of(activation.effective_mode) not in (Domain.DRYRUN, Domain.LIVE):
            return f"the strategy's mode is {activation.effective_mode}"
        if self.domain is not None and domain_of(activation.effective_mode) is not self.domain:
            return f"the strategy's mode is {activation.effective_mode}, its session computes in {self.domain.value}"
        return ""
