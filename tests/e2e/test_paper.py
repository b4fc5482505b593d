"""A running strategy whose world fills its orders from bars, by all processes that take part."""

import uuid
from decimal import Decimal

from qmtl_sdk import Runner
from qmtl_sdk.brokerage.models import as_decimal
from qmtl_sdk.contracts.ledger import LedgerLine
from qmtl_sdk.contracts.worlds import Preset
from qmtl_sdk.data.bars import to_ns
from qmtl_sdk.data.market import market_data
from tests.support.machine import Machine, wait_for
from tests.support.strategies import Half
from tests.support.worlds import FX, PAPER, WORLD

POLICY = {**PAPER, "selection": {"score": "sample_days"}}


def test_orders_of_a_running_strategy_are_filled_at_the_open_of_a_later_bar(machine: Machine) -> None:
    world = "t" + uuid.uuid4().hex[:12]
    spec = {
        **WORLD,
        "world": world,
        "clock": {"replay": {"start": "2017-06-07T10:00:00Z", "speed": 7200}},
        "data": {"presets": [FX]},
        "capital": {"amount": "20000"},
        "instruments": {"lot": "1"},
        "execution": {"fill": "next_open", "fee_bps": 1},
    }
    with machine.client() as client:
        client.create_world(spec, POLICY)
        try:
            assert Runner.submit(Half, world=world, config=machine.config).running is not None

            def fills() -> list[LedgerLine]:
                found = client.ledger(world)
                return found if len(found) >= 3 else []

            wait_for(fills, "three fills", 60)
        finally:
            Runner.shutdown()
        orders = {item.order.order_id: item.order for item in client.orders(world, limit=100)}
        lines = fills()
    bars = market_data(Preset.model_validate(FX)).read("EURUSD")
    opens = dict(zip(bars.ts.tolist(), bars.columns["open"].tolist(), strict=True))
    for entry in (line.entry for line in lines):
        order = orders[entry.order_id]
        assert entry.at is not None
        assert order.decided_at is not None
        assert entry.at >= order.decided_at
        assert entry.price == as_decimal(opens[to_ns(entry.at)])
        assert entry.fee == abs(entry.quantity) * entry.price * Decimal("0.0001")
        assert entry.ref == f"fill:EURUSD:{order.order_id}@{to_ns(entry.at)}"
