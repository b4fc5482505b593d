"""The exchange of the chaos runs has what it answered, also after a kill in the midst of a write."""

from datetime import UTC, datetime
from pathlib import Path

from qmtl_sdk.contracts.orders import Order, order_id_prefix
from tests.chaos.exchange import Journal
from tests.support.exchange import Exchange

ONE, TWO, THREE = (f"{order_id_prefix('w', 's')}{number}" for number in range(3))


def order(name: str, quantity: str = "2") -> Order:
    return Order.model_validate(
        {
            "order_id": name,
            "world_id": "w",
            "strategy_id": "s",
            "execution_domain": "dryrun",
            "epoch": 1,
            "symbol": "AAPL",
            "side": "buy",
            "quantity": quantity,
        }
    )


def reopened(path: Path) -> Exchange:
    found = Exchange(1)
    Journal(found, str(path))
    return found


def test_an_exchange_that_is_started_again_has_its_orders_in_their_last_state(tmp_path: Path) -> None:
    path, exchange, now = tmp_path / "journal", Exchange(1), datetime.now(UTC)
    journal = Journal(exchange, str(path))
    exchange.place(order(ONE), now)
    journal.write([ONE])
    exchange.orders[ONE].state = "cancelled"
    exchange.place(order(ONE, "3"), now)
    exchange.place(order(TWO), now)
    journal.write([ONE, TWO, "unknown"])
    again = reopened(path)
    assert again.orders == exchange.orders
    assert (again.told, again.doubled) == (exchange.told, [ONE])


def test_a_half_written_entry_is_left_out_and_later_ones_are_read(tmp_path: Path) -> None:
    path, exchange, now = tmp_path / "journal", Exchange(1), datetime.now(UTC)
    journal = Journal(exchange, str(path))
    exchange.place(order(ONE), now)
    journal.write([ONE])
    whole = path.stat().st_size
    exchange.place(order(TWO), now)
    journal.write([TWO])
    data = path.read_bytes()
    for end in (whole + 1, (whole + len(data)) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        cut = Exchange(1)
        after = Journal(cut, str(path))
        assert list(cut.orders) == [ONE]
        cut.place(order(THREE), now)
        after.write([THREE])
        assert list(reopened(path).orders) == [ONE, THREE]
