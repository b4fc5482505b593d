"""An order gate that a test opens and closes."""

from types import SimpleNamespace
from typing import Any

from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.runtime.activation import OrderGate


class Gate(OrderGate):
    """A gate of a world at an epoch, with a strategy's activation; `why` closes it."""

    def __init__(self, domain: Domain | None = Domain.DRYRUN) -> None:
        self.world: Any = SimpleNamespace(epoch=1, ttl_s=300.0, activation=SimpleNamespace(etag="a"))
        super().__init__(self.world, domain=domain)
        self.why = ""

    @property
    def reason(self) -> str:
        return self.why
