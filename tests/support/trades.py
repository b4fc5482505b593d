"""Orders of a scenario's strategy that the paper broker fills."""

from decimal import Decimal

from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.orders import Order, WithheldOrder
from qmtl_sdk.contracts.sessions import SessionOpen
from qmtl_sdk.runtime.routes.running import SessionKey
from tests.support.desk import new_order_id
from tests.support.machine import wait_for
from tests.support.scenarios import ApplyScenario


def session_of(stage: ApplyScenario) -> SessionKey:
    """A new session of the strategy."""
    wanted = SessionOpen(world_id=stage.world, strategy_id=stage.strategy, runner="r")
    return SessionKey.of(stage.client.open_session(wanted))


def order_of(
    stage: ApplyScenario, session: SessionKey, symbol: str, quantity: str, price: int = 100
) -> Order:
    """An order at a price; a negative quantity sells."""
    return Order(
        order_id=new_order_id(stage.world, stage.strategy),
        world_id=stage.world,
        strategy_id=stage.strategy,
        session_id=session.session_id,
        execution_domain=Domain.DRYRUN,
        epoch=stage.client.activation(stage.world)[0].epoch,
        symbol=symbol,
        side="sell" if quantity.startswith("-") else "buy",
        quantity=Decimal(quantity.removeprefix("-")),
        reference_price=Decimal(price),
    )


def traded(stage: ApplyScenario, symbol: str, *quantities: str, price: int = 100) -> list[Order]:
    """Orders that the paper broker has filled at a price; a negative quantity sells."""
    client, world = stage.client, stage.world
    session = session_of(stage)
    orders = [order_of(stage, session, symbol, quantity, price) for quantity in quantities]
    assert all(verdict.accepted for verdict in client.publish_orders(orders, session))
    mine = {order.order_id for order in orders}

    def all_filled() -> bool:
        records = [item for item in client.orders(world, limit=1000) if item.order.order_id in mine]
        return len(records) == len(mine) and all(item.state == "filled" for item in records)

    wait_for(all_filled, "fills")
    client.end_session(session, "done")
    return orders


def refused(stage: ApplyScenario, symbol: str) -> Order:
    """An order that the fence refuses: it is of an earlier epoch."""
    session = session_of(stage)
    order = order_of(stage, session, symbol, "1")
    order = order.model_copy(update={"epoch": order.epoch - 1})
    assert not stage.client.publish_orders([order], session)[0].accepted
    stage.client.end_session(session, "done")
    return order


def withheld(stage: ApplyScenario, symbol: str, reason: str) -> Order:
    """An order that its strategy did not send."""
    session = session_of(stage)
    order = order_of(stage, session, symbol, "1")
    assert stage.client.report_withheld([WithheldOrder(order=order, reason=reason)], session) == 1
    stage.client.end_session(session, "done")
    return order
