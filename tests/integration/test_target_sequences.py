"""A strategy that is halted under flow, resumed, demoted, rolled back and flattened, in any order.

At each rest its position is its target's share of the capital, or zero after a flatten.
"""

import uuid
from decimal import Decimal
from random import Random

import pytest

from activities.fence.flattens import SqlFlattens
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.order_settings import DEFAULT_ACCOUNTS
from activities.storage.database import Database
from qmtl_sdk.contracts.flattening import FlattenRequest
from tests.support.target_book import Book

D = Decimal
UNITS = 100
"""What all of the capital is, in units at the price of every bar."""


class Story:
    """What happens to a strategy, and what it should hold at rest."""

    def __init__(self, database: Database, seed: int) -> None:
        self.rng = Random(seed)
        self.book = Book(database)
        self.desk = self.book.desk
        self.halts = SqlStrategyHalts(database)
        self.flattens = SqlFlattens(database, DEFAULT_ACCOUNTS, 20.0)
        self.strategy = self.desk.strategies[0]
        self.value = D(0)
        self.weight = D(1)
        self.trades = True

    def starts_in_the_middle(self) -> None:
        self.book.session = self.desk.session()

    def a_bar(self) -> None:
        self.book.next_bar()
        self.value = D(self.rng.randint(-4, 4)) / 4

    def a_halt_under_flow(self) -> None:
        """Half of what is missing is on its way, or all of it, when the strategy is halted and resumed."""
        self.book.set(self.book.target(str(self.value)))
        if self.rng.random() < 0.5:
            self.book.routing.step()
        self.halts.halt(self.desk.world, self.strategy, "olga", "look")
        self.book.set(self.book.target(str(self.value)))
        self.halts.resume(self.desk.world, self.strategy, "olga", "go")

    def another_weight(self) -> None:
        self.weight = D(self.rng.choice([item for item in ("0.25", "0.5", "1") if D(item) != self.weight]))
        self.book.reweigh(str(self.weight))

    def a_rollback(self) -> None:
        """It gets another weight, trades, and has its earlier one again."""
        other = self.rng.choice([item for item in ("0.25", "0.5", "1") if D(item) != self.weight])
        run = self.desk.apply("dryrun", weights={self.strategy: other})
        self.book.set(self.book.target(str(self.value)))
        self.book.fill()
        self.desk.apply(None, rollback_of=run)

    def a_demotion(self) -> None:
        """A decision takes it out of paper trading, and it is flattened; then it trades again."""
        self.desk.decide(active=False)
        assert not self.book.set(self.book.target(str(self.value)))[0].accepted
        self.a_flatten()
        self.desk.decide()
        self.desk.apply("dryrun", weights={self.strategy: str(self.weight)})

    def a_flatten(self) -> None:
        wanted = FlattenRequest(flatten_id=uuid.uuid4().hex, strategy=self.strategy, reason="enough")
        first = self.flattens.request(self.desk.world, wanted, "olga")
        again = self.flattens.request(self.desk.world, wanted, "olga")
        assert again.ordered == first.ordered
        self.book.fill()
        assert self.book.position() == 0

    def rest(self) -> None:
        """Let the strategy send its newest target, as it does with each bar and each change."""
        for _ in range(2):  # a second time where orders against it had to be cancelled first
            (verdict,) = self.book.set(self.book.target(str(self.value)))
            self.book.fill()
        assert verdict.accepted, verdict.reason
        wanted = self.value * self.weight * UNITS
        assert abs(self.book.position() - wanted) < 1, (self.book.position(), wanted)


ACTS = (
    Story.a_bar,
    Story.a_bar,
    Story.starts_in_the_middle,
    Story.a_halt_under_flow,
    Story.another_weight,
    Story.a_rollback,
    Story.a_demotion,
    Story.a_flatten,
)


@pytest.mark.parametrize("seed", range(25))
def test_at_each_rest_a_position_is_its_targets_share(database: Database, seed: int) -> None:
    story = Story(database, seed)
    story.a_bar()
    story.rest()
    for _ in range(8):
        act = story.rng.choice(ACTS)
        act(story)
        story.rest()
    story.a_flatten()
