"""A running strategy holds what it says: from the middle, after a halt, and with another share."""

import uuid
from collections.abc import Iterator
from decimal import Decimal

import pytest

from qmtl_sdk import Node, Runner, Strategy, StreamInput, SubmitResult, TradeOrderPublisherNode
from qmtl_sdk.contracts.ledger import Booking
from qmtl_sdk.runtime.client import GatewayClient
from tests.support.machine import Machine, wait_for
from tests.support.strategies import Half
from tests.support.worlds import FX, PAPER, WORLD

CAPITAL = Decimal(20000)
POLICY = {**PAPER, "selection": {"score": "sample_days"}}


class Other(Strategy):
    """Always long."""

    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=2)
        node = Node(price, lambda view: {"target_weight": 1.0}, name="always")
        self.add_nodes([node, TradeOrderPublisherNode(node, name="orders")])


class Hours:
    """A world whose clock stands still in a trading hour, with a strategy that trades there."""

    def __init__(self, machine: Machine, client: GatewayClient, name: str) -> None:
        self.machine = machine
        self.client = client
        self.world = name
        clock = {"replay": {"start": "2017-06-07T10:00:00Z", "speed": 0}}
        spec = {
            **WORLD,
            "world": name,
            "clock": clock,
            "data": {"presets": [FX]},
            "capital": {"amount": str(CAPITAL)},
            "instruments": {"lot": "1"},
        }
        client.create_world(spec, POLICY)

    def submit(self) -> SubmitResult:
        found = Runner.submit(Half, world=self.world, config=self.machine.config)
        assert found.running is not None, found.verdict
        return found

    def position(self) -> Decimal:
        found = self.client.positions(self.world)
        return sum((item.position.quantity for item in found), Decimal(0))

    def holds(self, share: str) -> None:
        """Wait until the position is this share of the capital, to the unit."""
        price = self.price()
        wanted = int(CAPITAL * Decimal(share) / price)
        wait_for(lambda: self.position() == wanted, f"a position of {wanted}")

    def price(self) -> Decimal:
        found = wait_for(lambda: self.client.orders(self.world, limit=1), "an order")
        price = found[0].order.reference_price
        assert price is not None
        return price


@pytest.fixture
def hours(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Hours]:
    with machine.client() as client:
        yield Hours(machine, client, "t" + uuid.uuid4().hex[:12])
        Runner.shutdown()


def test_a_strategy_that_starts_in_the_middle_holds_what_it_says(hours: Hours) -> None:
    result = hours.submit()
    hours.holds("0.5")  # the last hour before 10:00 rose
    first = hours.client.orders(hours.world, limit=10)
    assert len(first) == 1
    strategy = result.strategy_id

    # Something else has changed its position: after a halt and its resume it is what it says again.
    moved = Booking.model_validate(
        {
            "booking_id": "moved",
            "kind": "adjustment",
            "strategy_id": strategy,
            "account": "paper",
            "symbol": "EURUSD",
            "quantity": "1000",
            "price": "1.1",
            "reason": "the test",
        }
    )
    hours.client.book(hours.world, moved)
    hours.client.halt(hours.world, "the test")
    hours.client.resume(hours.world, "the test")
    hours.holds("0.5")
    assert [record.order.signed for record in hours.client.orders(hours.world, limit=10)][1:] == [-1000]

    # A second strategy takes half of the world's capital, so the first is resized.
    Runner.submit(Other, world=hours.world, config=hours.machine.config, run=False)
    hours.holds("0.25")

    # A new session orders nothing more, and so does a strategy that is submitted again.
    Runner.shutdown()
    count = len(hours.client.orders(hours.world, limit=10))
    hours.submit()
    hours.client.halt(hours.world, "the test")
    hours.client.resume(hours.world, "the test")
    hours.holds("0.25")
    assert len(hours.client.orders(hours.world, limit=10)) == count
