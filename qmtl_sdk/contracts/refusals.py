"""Why orders and targets are refused."""

from enum import StrEnum


class Refusal(StrEnum):
    """Why the fence, or the order gate before it, refuses an order.

    The values are stable: they are counted and stored.
    """

    SHADOW = "shadow"
    HALTED = "halted"
    STRATEGY_HALTED = "strategy_halted"
    FROZEN = "frozen"
    DRAINING = "draining"
    STALE_EPOCH = "stale_epoch"
    STALE_DECISION = "stale_decision"
    NO_SESSION = "no_session"
    NOT_ACTIVE = "not_active"
    WRONG_DOMAIN = "wrong_domain"
    LIVE_NOT_ALLOWED = "live_not_allowed"
    EDGE_CLOSED = "edge_closed"
    NO_ROUTER = "no_router"
    CIRCUIT_BREAKER = "circuit_breaker"
    SYMBOL_LIMIT = "symbol_limit"
    QUANTITY_LIMIT = "quantity_limit"
    NOTIONAL_LIMIT = "notional_limit"
    UNKNOWN_PRICE = "unknown_price"
    POSITION_LIMIT = "position_limit"
    GROSS_LIMIT = "gross_limit"
    LOSS_LIMIT = "loss_limit"
    DRAWDOWN_LIMIT = "drawdown_limit"
    NO_CAPITAL = "no_capital"
    NO_PRICE = "no_price"
    STALE_TARGET = "stale_target"
    TARGET_LIMIT = "target_limit"
    OPEN_ORDERS = "open_orders"
    ORDER_REUSED = "order_reused"
    WITHHELD = "withheld"


REFUSALS: dict[Refusal, str] = {
    Refusal.SHADOW: "shadow computes beside a world and never trades",
    Refusal.HALTED: "the world is halted; qmtl world status W says why, qmtl world resume W lifts it",
    Refusal.STRATEGY_HALTED: "the strategy is halted; qmtl world resume W -s STRATEGY lifts it",
    Refusal.FROZEN: "an apply has frozen the world",
    Refusal.DRAINING: "an apply is waiting for open orders to end",
    Refusal.STALE_EPOCH: "the order was decided before the world's last freeze, unfreeze, halt or resume",
    Refusal.STALE_DECISION: "the world's newest decision is older than its ttl",
    Refusal.NO_SESSION: "its session has ended, or is not of this caller, strategy, world or domain",
    Refusal.NOT_ACTIVE: "the strategy is not active in the world",
    Refusal.WRONG_DOMAIN: "the strategy's stage differs from the order's domain",
    Refusal.LIVE_NOT_ALLOWED: "the world does not allow live",
    Refusal.EDGE_CLOSED: "the world's edge from backtest to live is closed",
    Refusal.NO_ROUTER: "no order router works, or the live broker fails: qmtl status says which",
    Refusal.CIRCUIT_BREAKER: "the world's circuit breaker has tripped; qmtl world resume W resets it",
    Refusal.SYMBOL_LIMIT: "the world's order limits do not name the symbol",
    Refusal.QUANTITY_LIMIT: "the quantity is above the world's order limits, or too large for an order",
    Refusal.NOTIONAL_LIMIT: "the order's notional is above the world's order limits, or it has no price",
    Refusal.UNKNOWN_PRICE: "a limit values the order, and its account has never traded the symbol: "
    "an operator names a price in the world's order_limits.prices (qmtl world update W FILE)",
    Refusal.POSITION_LIMIT: "the strategy's position in the symbol would be above a limit of the world",
    Refusal.GROSS_LIMIT: "all positions together would be above a limit of the strategy, world or account",
    Refusal.LOSS_LIMIT: "the loss is above a limit of the strategy, world or account: only reductions pass",
    Refusal.DRAWDOWN_LIMIT: "profit has fallen by more than a limit from its peak: only reductions pass",
    Refusal.NO_CAPITAL: "a target weight needs the world's capital (qmtl world update W FILE), "
    "or use target_units",
    Refusal.NO_PRICE: "the target has no price, and the ledger knows none: give the row a price",
    Refusal.STALE_TARGET: "the strategy has set a target of a later bar",
    Refusal.TARGET_LIMIT: "the strategy has targets for 1000 symbols already",
    Refusal.OPEN_ORDERS: "open orders that trade against the target end first; it is sent again by itself",
    Refusal.ORDER_REUSED: "its order id was used for an order with another content",
    Refusal.WITHHELD: "the order gate of the strategy held it back",
}
"""What each refusal means, for a person."""

UNLOGGED = frozenset(
    {
        Refusal.NO_CAPITAL,
        Refusal.NO_PRICE,
        Refusal.STALE_TARGET,
        Refusal.TARGET_LIMIT,
        Refusal.OPEN_ORDERS,
        Refusal.ORDER_REUSED,
    }
)
"""Refusals of which the order log has no row: of targets that lead to no order, of ids that are in use."""
