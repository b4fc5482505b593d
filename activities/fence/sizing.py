"""From a target to an order, as a pure function: what a target means in units, and what the position lacks.

1. A target is sized when it, the strategy's weight or the world's capital is new: value × weight (× capital
   for a target weight), divided by the price, in whole lots toward zero. A price that drifts changes nothing.
2. What is missing is the size less the position in the ledger and what open orders may still fill.
3. Open orders that trade the other way are cancelled first: an order beside them could trade twice.
4. Where the order turns the position around, the part of it that closes the position is named too: it is
   ordered where a limit refuses the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from qmtl_sdk.brokerage.fills import in_lots
from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, EXACT, ZERO, exact_sum, plain, quotient
from qmtl_sdk.contracts.capital import DEFAULT_LOT
from qmtl_sdk.contracts.instruments import Instrument, InstrumentConstraints, Instruments
from qmtl_sdk.contracts.orders import Order
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.targets import Target
from qmtl_sdk.contracts.worlds import WorldSpec


class WorldSizing:
    """What a world's spec says about sizes."""

    def __init__(self, spec: WorldSpec) -> None:
        self.capital = spec.capital.amount if spec.capital else None
        rules = spec.instruments
        self._instruments = Instruments(_with_a_lot(rules))

    def instrument(self, account: str, symbol: str) -> Instrument:
        """Return the rules of an instrument."""
        return self._instruments.find(account, symbol)


def _with_a_lot(rules: InstrumentConstraints) -> InstrumentConstraints:
    return rules if rules.lot else rules.model_copy(update={"lot": DEFAULT_LOT})


@dataclass(frozen=True)
class SizedTarget:
    """A target as it was last accepted, and its size in units. Times are ISO 8601 texts (UTC)."""

    unit: str
    value: Decimal
    weight: Decimal
    capital: Decimal | None
    price: Decimal | None
    units: Decimal
    decided_at: str
    updated_at: str = ""

    @property
    def basis(self) -> tuple[object, ...]:
        """What a size follows from, but for the price."""
        return (self.unit, self.value, self.weight, self.capital)


@dataclass(frozen=True)
class WorkingQuantity:
    """What an open order may still fill (positive buys). `unsent`: cancelling it ends it at once.

    `flattens`: it is a person's, and no target cancels it. `ending`: its venue is asked to cancel it already.
    """

    order_id: str
    quantity: Decimal
    unsent: bool
    flattens: bool = False
    ending: bool = False


@dataclass(frozen=True)
class SymbolState:
    """A strategy's target, position and open orders in a symbol. `mark`: the ledger's newest price."""

    target: SizedTarget | None
    position: Decimal = ZERO
    mark: Decimal = ZERO
    working: tuple[WorkingQuantity, ...] = ()

    def ordered(self, order: Order) -> "SymbolState":
        """Return the state after an order was accepted, which this transaction cannot cancel any more."""
        return replace(self, working=(*self.working, WorkingQuantity(order.order_id, order.signed, False)))


@dataclass(frozen=True)
class TargetDecision:
    """What follows from a target: an `order`, or none; a `refusal`; open orders to `cancel`; its `size`.

    `closing`: the part that closes the position, of an order that turns it around.
    """

    order: Order | None = None
    refusal: Refusal | None = None
    cancel: frozenset[str] = frozenset()
    size: SizedTarget | None = None
    closing: Order | None = None


def decide_target(
    target: Target, state: SymbolState, weight: Decimal, world: WorldSizing, account: str, opened_at: str
) -> TargetDecision:
    """Decide what is ordered for a target. `opened_at`: when its session was opened (ISO 8601, UTC)."""
    last = state.target
    decided_at = target.decided_at.isoformat(timespec="microseconds")
    if last is not None and decided_at < last.decided_at and opened_at <= last.updated_at:
        return TargetDecision(refusal=Refusal.STALE_TARGET)
    rules = world.instrument(account, target.symbol)
    price = target.reference_price or state.mark or None
    size = _sized(target, (last, weight, price), world.capital, rules)
    if isinstance(size, Refusal):
        return TargetDecision(refusal=size)
    missing = in_lots(_missing(size, state.position, state.working), rules.lot)
    against = [item for item in state.working if item.quantity * missing < 0]
    cancel = frozenset(item.order_id for item in against if not (item.flattens or item.ending))
    if any(item.flattens or not item.unsent for item in against):
        return TargetDecision(refusal=Refusal.OPEN_ORDERS, cancel=cancel)
    if against:
        left = tuple(item for item in state.working if item.quantity * missing >= 0)
        state = replace(state, working=left)
        missing = in_lots(_missing(size, state.position, left), rules.lot)
    if abs(missing) >= AMOUNT_LIMIT:
        return TargetDecision(refusal=Refusal.QUANTITY_LIMIT)
    order = _ordered(target, missing, price, state, rules)
    if order is None:
        return TargetDecision(cancel=cancel, size=size)
    closing = _ordered(target, in_lots(_closing(state, missing), rules.lot), price, state, rules)
    return TargetDecision(order, cancel=cancel, size=size, closing=closing)


def _ordered(
    target: Target, missing: Decimal, price: Decimal | None, state: SymbolState, rules: Instrument
) -> Order | None:
    """Return the order that changes a position by `missing`; None where that is too little to be ordered."""
    notional = EXACT.multiply(abs(missing), price) if price else None
    if not missing or (notional is not None and notional < rules.min_trade_notional):
        return None
    return order_for(target, missing, price).model_copy(
        update={
            "time_in_force": rules.time_in_force,
            "reduce_only": rules.supports_reduce_only and _reduces(state, missing),
        }
    )


def _closing(state: SymbolState, missing: Decimal) -> Decimal:
    """Return what closes a position beside its open orders; 0 where `missing` does not turn it around."""
    reached = exact_sum((state.position, *(item.quantity for item in state.working)))
    turns = reached * missing < 0 and abs(missing) > abs(reached)
    return -reached if turns and reached * state.position > 0 else ZERO


def _sized(
    target: Target,
    known: tuple[SizedTarget | None, Decimal, Decimal | None],
    capital: Decimal | None,
    rules: Instrument,
) -> SizedTarget | Refusal:
    """Return the size of a target, the last one where nothing that it follows from has changed."""
    last, weight, price = known
    decided_at = target.decided_at.isoformat(timespec="microseconds")
    of_capital = capital if target.unit == "weight" else None
    found = SizedTarget(target.unit, target.value, weight, of_capital, price, ZERO, decided_at)
    if last is not None and last.basis == found.basis:
        return last
    value = EXACT.multiply(target.value, weight)
    if target.unit == "weight":
        if of_capital is None:
            return Refusal.NO_CAPITAL
        value = EXACT.multiply(value, of_capital)
    if target.unit != "units":
        if price is None:
            return Refusal.NO_PRICE
        value = quotient(value, price)
    return replace(found, units=plain(in_lots(value, rules.lot)))


def resized(last: SizedTarget, weight: Decimal, lot: Decimal) -> SizedTarget:
    """Return a target with the size that it has at another weight, at the price at which it was sized."""
    value = EXACT.multiply(last.value, weight)
    if last.capital is not None:
        value = EXACT.multiply(value, last.capital)
    if last.unit != "units":
        assert last.price is not None  # it was sized by it
        value = quotient(value, last.price)
    return replace(last, weight=weight, units=plain(in_lots(value, lot)))


def _missing(size: SizedTarget, position: Decimal, working: Sequence[WorkingQuantity]) -> Decimal:
    open_too = exact_sum((position, *(item.quantity for item in working)))
    return EXACT.subtract(size.units, open_too)


def order_for(target: Target, missing: Decimal, price: Decimal | None) -> Order:
    """Return the plain order that changes a position by `missing`, which is not 0, for a target."""
    return Order(
        order_id=target.order_id,
        world_id=target.world_id,
        strategy_id=target.strategy_id,
        session_id=target.session_id,
        execution_domain=target.execution_domain,
        epoch=target.epoch,
        symbol=target.symbol,
        reference_price=price,
        decided_at=target.decided_at,
        side="buy" if missing > 0 else "sell",
        quantity=abs(missing),
    )


def _reduces(state: SymbolState, missing: Decimal) -> bool:
    """Return whether an order brings the position nearer to zero, and cannot cross it."""
    after = exact_sum((state.position, missing, *(item.quantity for item in state.working)))
    return state.position * missing < 0 and after * state.position >= 0
