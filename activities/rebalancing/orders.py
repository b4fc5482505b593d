"""The order of a trade."""

from decimal import Decimal

from activities.fence.rules import REBALANCING as ORIGIN
from activities.rebalancing.trades import PlannedTrade
from activities.storage.tables import RebalancingTradeRow
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.orders import Order


def order_of(
    trade: PlannedTrade | RebalancingTradeRow, domain: Domain, epoch: int, quantity: Decimal | None = None
) -> Order:
    """Build the order of a trade for `quantity` (positive buys), or for the whole of it."""
    signed = Decimal(trade.quantity) if quantity is None else quantity
    return Order.model_validate(
        {
            "order_id": trade.order_id,
            "world_id": trade.world_id,
            "strategy_id": trade.strategy_id,
            "execution_domain": domain,
            "epoch": epoch,
            "symbol": trade.symbol,
            "side": "buy" if signed > 0 else "sell",
            "quantity": signed.copy_abs(),
            "reference_price": trade.price,
            "time_in_force": trade.time_in_force,
            "reduce_only": trade.reduce_only,
            "origin": ORIGIN,
        }
    )
