"""What one transaction decides about the orders and targets that are new to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from activities.fence.log_line import ACCEPTED, REFUSED, LogLine, NewLine
from activities.fence.position_limits import AccountLimits, PositionChecks
from activities.fence.rules import REBALANCING, BreakerCount, OrderContext, refusal
from activities.fence.sizing import order_for
from activities.fence.snapshot import FenceSnapshot
from activities.fence.targets import Targets, WorldSizings
from activities.storage.transactions import Transaction, utc_now, utc_text
from qmtl_sdk.contracts.orders import Order, OrderRequest
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.targets import Target

# Limits of the size of an order.
_TOO_MUCH = (Refusal.QUANTITY_LIMIT, Refusal.NOTIONAL_LIMIT)

# Limits of orders and positions, which may allow the part of an order that closes a position.
_LIMITS = frozenset(
    {*_TOO_MUCH, Refusal.POSITION_LIMIT, Refusal.GROSS_LIMIT, Refusal.LOSS_LIMIT, Refusal.DRAWDOWN_LIMIT}
)

# What a target without an order is checked with: small enough for every limit.
_LEAST = Decimal("0.000000000001")


@dataclass(frozen=True)
class Grounds:
    """What decisions rest on, besides the requests.

    `routed`: an order router has worked a moment ago. `accounts`: their limits, and the one of each domain.
    `sizings`: what worlds say about sizes.
    """

    snapshot: FenceSnapshot
    routed: bool
    accounts: AccountLimits
    sizings: WorldSizings


class NewRequests:
    """Decides about new requests, in their order.

    `lines`: for the log, by order id. `unwritten`: the answers to targets of which no order follows, by order
    id: the refusal, or None where nothing is missing. `counts`: of each world's circuit breaker.
    `has_targets`: the transaction has also changed what is stored of targets.
    """

    def __init__(self, tx: Transaction, requests: Iterable[OrderRequest], grounds: Grounds) -> None:
        """Decide. The transaction holds the fences of the requests' worlds."""
        self.lines: dict[str, NewLine] = {}
        self.unwritten: dict[str, Refusal | None] = {}
        self._snapshot = grounds.snapshot
        self._routed = grounds.routed
        self._now = utc_now()
        self.counts = {
            world_id: BreakerCount(fence, self._now) for world_id, fence in self._snapshot.fences.items()
        }
        wanted = list(requests)
        targets = [request for request in wanted if isinstance(request, Target)]
        account_of = grounds.accounts.account_of
        self._targets = Targets(tx, targets, account_of, grounds.sizings) if targets else None
        self.has_targets = bool(targets)
        self._positions = PositionChecks(tx.connection, wanted, self._snapshot.fences, grounds.accounts)
        for request in wanted:
            self._decide(request)
        if self._targets is not None:
            self._targets.store()

    def _decide(self, request: OrderRequest) -> None:
        if isinstance(request, Order):
            order, reason = request, self._refusal(request) or self._positions.refusal(request)
        else:
            assert isinstance(request, Target)
            found, reason = self._order_for(request)
            if found is None:
                self.unwritten[request.order_id] = reason
                return
            order = found
        count = self.counts[order.world_id]
        if reason is None and count.tripped:  # by an order before it in this batch
            reason = Refusal.CIRCUIT_BREAKER
        if reason is None or order.origin != REBALANCING:  # else a run could halt its world
            count.count(reason)
        self.lines[order.order_id] = self._line(order, reason)
        if reason is None:
            self._positions.ordered(order)
            if self._targets is not None:
                self._targets.ordered(order)

    def _order_for(self, target: Target) -> tuple[Order | None, Refusal | None]:
        """Return the order of a target, if there is one, and why it is refused.

        A target is kept only where the rules allow an order of its strategy. Where a limit refuses an order
        that turns a position around, the part that closes the position is ordered: what the strategy wants
        then is refused when its target is sent again.
        """
        assert self._targets is not None
        session = self._snapshot.sessions.get(target.session_id)
        is_rebalanced = bool(self._snapshot.fences[target.world_id].rebalancing)
        decision = self._targets.decide(target, session.opened_at if session else "", is_rebalanced)
        checked = decision.order or order_for(target, _LEAST, target.reference_price or _LEAST)
        reason = self._refusal(checked)
        unlogged = False
        if reason is None and decision.order is not None:
            reason = self._positions.refusal(decision.order)
            unlogged = reason is not None  # it is sent again and again: a row each time would fill the log
        if reason in _LIMITS and decision.closing is not None and self._is_allowed(decision.closing):
            self._targets.cancel(target, decision)
            return decision.closing, None
        if unlogged:
            self._targets.cancel(target, decision)
            return None, reason
        if reason in _TOO_MUCH:
            self._targets.cancel(target, decision)
        if reason is None:
            self._targets.accept(target, decision)
            reason = decision.refusal
        return decision.order, reason

    def _is_allowed(self, order: Order) -> bool:
        return (self._refusal(order) or self._positions.refusal(order)) is None

    def _refusal(self, order: Order) -> Refusal | None:
        return refusal(
            OrderContext(
                order,
                self._snapshot.fences[order.world_id],
                self._snapshot.activations.get((order.world_id, order.strategy_id)),
                self._snapshot.sessions.get(order.session_id),
                self._now,
                self._routed,
                self._positions.known_price(order),
            )
        )

    def _line(self, order: Order, reason: Refusal | None) -> NewLine:
        kind, why = (REFUSED, reason.value) if reason else (ACCEPTED, "")
        line = LogLine(
            # A microsecond apart, so that the router sends a caller's orders in the caller's order.
            utc_text(datetime.fromisoformat(self._now) + timedelta(microseconds=len(self.lines))),
            order.world_id,
            kind,
            order.order_id,
            self._snapshot.fences[order.world_id].epoch,
            order.strategy_id,
            why,
            order.model_dump_json(),
        )
        return NewLine.of(line, order)
