"""Whatever comes in whatever order, orders of flattens only reduce, and what is flattened ends at zero."""

import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activities.storage.database import Database
from qmtl_sdk.contracts.orders import CancelRequest, OrderRecord
from tests.support.desk import Desk
from tests.support.flatten_floor import Floor

Step = tuple[Any, ...]
WHICH = st.integers(0, 20)
HONEST: tuple[st.SearchStrategy[Step], ...] = (
    *(
        [
            st.tuples(st.just("order"), st.sampled_from(["buy", "sell"]), st.integers(1, 20), st.booleans()),
            st.tuples(st.just("send")),
            st.tuples(st.just("fill"), WHICH, st.integers(1, 20)),
        ]
        * 4
    ),
    st.tuples(st.just("end"), WHICH, st.sampled_from(["cancelled", "rejected", "expired"])),
    st.tuples(st.just("cancel"), WHICH),
    *([st.tuples(st.just("flatten"))] * 3),
    st.tuples(st.just("halt")),
    st.tuples(st.just("time")),
)
LATE: tuple[st.SearchStrategy[Step], ...] = (
    *HONEST,
    st.tuples(st.just("fill late"), WHICH, st.integers(1, 20)),
)
_NUMBER = itertools.count()


class Story:
    """Steps in a world of their own."""

    def __init__(self, database: Database) -> None:
        desk = Desk(database, f"story{next(_NUMBER)}")
        desk.apply("dryrun")
        self.floor = Floor.over(desk)

    def take(self, step: Step) -> None:
        kind, *given = step
        getattr(self, kind.replace(" ", "_"))(*given)
        held, closing = self.floor.held(), self.floor.closing_still()
        assert all(left * held < 0 for left in closing), (step, held, closing)
        assert abs(sum(closing)) <= abs(held), (step, held, closing)

    def order(self, side: str, quantity: int, sent: bool) -> None:
        self.resume()
        self.floor.order(side, str(quantity), sent=False)
        if sent:
            self.send()

    def send(self) -> None:
        self.floor.send()

    def fill(self, which: int, quantity: int) -> None:
        """Fill an order at the venue in part or in full, whether it is to be cancelled or not."""
        for record in self._some(which, "sent", "partially_filled"):
            left = record.order.quantity - self._done(record)
            state = "filled" if quantity >= left else "partially_filled"
            self.floor.says(record.order, state, str(min(left, Decimal(quantity))))

    def fill_late(self, which: int, quantity: int) -> None:
        """Fill an order that the venue said had ended."""
        for record in self._some(which, "cancelled", "rejected", "expired"):
            left = record.order.quantity - self._done(record)
            was_sent = any(change.state == "sent" for change in record.changes)
            if left and was_sent:
                self.floor.says(record.order, "cancelled", str(min(left, Decimal(quantity))))

    def end(self, which: int, state: str) -> None:
        for record in self._some(which, "sent", "partially_filled"):
            self.floor.says(record.order, state)

    def cancel(self, which: int) -> None:
        for record in self._some(which, "accepted", "sent", "partially_filled"):
            self.floor.log.cancel(self.floor.world, CancelRequest(order_ids=(record.order.order_id,)), "olga")

    def flatten(self) -> None:
        self.floor.flatten()

    def halt(self) -> None:
        self.floor.desk.fence.halt(self.floor.world, "olga", "")

    def resume(self) -> None:
        if self.floor.desk.fence_row().halted:
            self.floor.desk.steps.resume(self.floor.world, "olga", "")

    def time(self) -> None:
        self.floor.pass_time()

    def _some(self, which: int, *states: str) -> Sequence[OrderRecord]:
        """One order in one of these states, if there is one."""
        found = [record for record in self.floor.records() if record.state in states]
        return found[which % len(found) :][:1] if found else []

    @staticmethod
    def _done(record: OrderRecord) -> Decimal:
        return record.fill.quantity if record.fill else Decimal(0)


@pytest.mark.parametrize("late", [False, True], ids=["honest venue", "fills after the end"])
def test_orders_of_flattens_only_reduce_and_end_at_zero(database: Database, late: bool) -> None:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(-20, 20), st.lists(st.one_of(*(LATE if late else HONEST)), min_size=30, max_size=45))
    def check(held: int, steps: list[Step]) -> None:
        story = Story(database)
        if held:
            story.floor.hold(str(held))
        for step in steps:
            story.take(step)
        floor = story.floor
        floor.flatten()
        floor.fill_all()
        assert (floor.held(), floor.opened(), floor.under_way()) == (0, [], 0)
        found = [line for line in floor.violations() if not (late and "crossed zero" in line)]
        assert found == []

    check()
