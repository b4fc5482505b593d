"""Whether a running strategy may send orders: what the world's stream says of it, and how fresh that is.

The gate is closed unless everything holds: the stream was heard of within the decision's ttl, the strategy is active in effect for paper or live, its session holds its
lease, and its data is at hand. It says why it is closed. In shadow it never opens.
"""

import time
from dataclasses import dataclass, field

from qmtl_sdk.contracts.domains import DEFAULT_TTL_S, Domain, domain_of
from qmtl_sdk.contracts.durations import words
from qmtl_sdk.contracts.worlds import ActivationEnvelope
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
    def ttl_s(self) -> float:
        """How long the newest decision may be gone by without being heard of."""
        event = self._stream.states["decisions"].events.get(self.world_id)
        return float(event.data.get("ttl", DEFAULT_TTL_S)) if event is not None and event.data else float(DEFAULT_TTL_S)

    @property
    def silence_s(self) -> float:
        """How long nothing was heard of the Gateway."""
        return time.monotonic() - self._stream.heard_at


@dataclass
class Gate:
    """`reason` is empty when it is open. `faults`: what the running strategy itself has against it, by kind."""

    manager: ActivationManager
    shadow: bool = False
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
            return "the stream was never heard" if silence == float("inf") else f"the stream was not heard for {words(silence)}, longer than the decision's ttl of {words(ttl)}"
        activation = self.manager.activation
        if activation is None:
            return "the world has not decided about the strategy"
        if activation.freeze or activation.drain:
            return f"the world is {'frozen' if activation.freeze else 'draining'}"
        if not activation.active:
            return "the strategy is not active"
        if domain_of(activation.effective_mode) not in (Domain.DRYRUN, Domain.LIVE):
            return f"the strategy's mode is {activation.effective_mode}"
        return ""
