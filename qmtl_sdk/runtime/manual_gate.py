"""The gate of strategies that are fed by hand, which post their orders to a service of the author's."""

from collections import Counter
from typing import Any, Protocol

from qmtl_sdk.contracts.domains import ComputeContext, Domain


class TradeExecutionService(Protocol):
    """Receives the orders of a strategy that is fed by hand."""

    def post_order(self, order: dict[str, Any]) -> Any: ...


class ManualOrderGate:
    """The gate of strategies that are fed by hand through `Runner.feed_queue_data`."""

    def __init__(self) -> None:
        self.enabled = False
        self.service: TradeExecutionService | None = None
        self.blocked: Counter[str] = Counter()

    def send(self, order: dict[str, Any], context: ComputeContext | None) -> bool:
        """Post the order to the service if its context allows it; return whether it was posted."""
        reason = self.reason(context)
        if reason or self.service is None:
            self.blocked[reason or "no trade execution service"] += 1
            return False
        self.service.post_order(order)
        return True

    def reason(self, context: ComputeContext | None) -> str:
        """Return why orders are blocked; empty if they are allowed."""
        if context is None:
            return "no context"
        if context.execution_domain is Domain.SHADOW:
            return "shadow"
        if not context.orders_allowed:
            return (
                context.downgrade_reason.value
                if context.downgrade_reason
                else f"domain {context.execution_domain.value}"
            )
        return "" if self.enabled else "trade submission is off"
