"""The SDK's order gate: orders leave only where the context allows them. What is kept back is counted by reason."""

from collections import Counter
from typing import Any, Protocol

from qmtl_sdk.contracts.domains import ComputeContext, Domain


class TradeExecutionService(Protocol):
    """Where orders go."""

    def post_order(self, order: dict[str, Any]) -> Any: ...


class OrderGate:
    def __init__(self) -> None:
        self.enabled = False
        self.service: TradeExecutionService | None = None
        self.blocked: Counter[str] = Counter()

    def send(self, order: dict[str, Any], context: ComputeContext | None) -> bool:
        """Whether it left."""
        reason = self.reason(context)
        if reason or self.service is None:
            self.blocked[reason or "no trade execution service"] += 1
            return False
        self.service.post_order(order)
        return True

    def reason(self, context: ComputeContext | None) -> str:
        """Why orders are kept back; nothing where they are not."""
        if context is None:
            return "no context"
        if context.execution_domain is Domain.SHADOW:
            return "shadow"
        if not context.orders_allowed:
            return context.downgrade_reason.value if context.downgrade_reason else f"domain {context.execution_domain.value}"
        return "" if self.enabled else "trade submission is off"
