"""An order router that sends each attempt of an order under another client order id: the run must find it."""

import sys
import uuid
from datetime import datetime

from activities.brokers import ccxt_broker
from activities.brokers.broker import AcceptedOrder
from activities.brokers.router import _open
from activities.process import run_process
from qmtl_sdk.contracts.orders import OrderReport

_place = ccxt_broker.CcxtBroker.place
_names: dict[str, str] = {}


def _place_anew(
    self: ccxt_broker.CcxtBroker, orders: list[AcceptedOrder], now: datetime
) -> list[OrderReport]:
    _names.update({placed.order.order_id: uuid.uuid4().hex[:30] for placed in orders})
    return _place(self, orders, now)


def _name(order_id: str) -> str:
    return _names.setdefault(order_id, uuid.uuid4().hex[:30])


if __name__ == "__main__":
    setattr(ccxt_broker.CcxtBroker, "place", _place_anew)  # noqa: B010
    ccxt_broker.client_id = _name  # type: ignore[assignment]
    sys.exit(run_process("router", _open))
