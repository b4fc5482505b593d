"""Kill the order router while a strategy trades by targets at an unkind exchange, and halts come and go.

At rest the strategy holds what it says, to the last digit, whatever was cancelled, rejected, cut, filled in
parts or told twice meanwhile. The sabotaged run forgets the position when it computes an order, and must be
found.
"""

import random
import time
from decimal import Decimal
from pathlib import Path

from activities.fence import targets
from activities.fence.order_log import SqlOrderLog
from activities.ledger.sql import SqlLedger
from qmtl_sdk.contracts.ledger import PositionFilter
from qmtl_sdk.contracts.targets import TargetVerdict
from tests.chaos.routing import RoutingChaos

SETTLES_S = 60.0

# One that forgets what it holds never comes to rest.
FORGETS_S = 6.0

# The most that the strategy wants to hold, in units; its weight is a half.
MOST = 40


class TargetChaos(RoutingChaos):
    """`forgets`: what the strategy holds counts for nothing when its orders are computed."""

    def __init__(self, home: Path, seed: int, forgets: bool = False) -> None:
        super().__init__(home, seed)
        self._report.sabotage = "forgets positions" * forgets
        self._forgets = forgets
        self._rng = random.Random(seed)
        self._wanted = Decimal(0)

    def trade(self, session: str) -> dict[str, str]:
        """Set a target, mostly a new one; return what the order was told that followed, if one did."""
        if self._rng.random() < 0.7:
            self._wanted = Decimal(self._rng.randint(-MOST, MOST))
        return self._set(session)[0]

    def settle(self) -> dict[str, str]:
        """Set the last target until nothing is missing and no order is open."""
        told = dict[str, str]()
        until = time.monotonic() + (FORGETS_S if self._forgets else SETTLES_S)
        log, session = SqlOrderLog(self._database), self._desk.session()
        while time.monotonic() < until:
            found, is_there = self._set(session)
            told |= found
            if is_there and not log.open_orders(self._desk.world):
                return told
            time.sleep(0.2)
        return told

    def compare_more(self) -> list[str]:
        """Say where the position is not the target."""
        found = SqlLedger(self._database).positions(self._desk.world, PositionFilter())
        held = sum((item.position.quantity for item in found), Decimal(0))
        wanted = self._wanted / 2
        return [] if held == wanted else [f"the strategy holds {held}, and wants {wanted}"]

    def _set(self, session: str) -> tuple[dict[str, str], bool]:
        """Set the target; return what an order was told that followed, and whether nothing is missing."""
        desk = self._desk
        target = desk.target(session, desk.epoch, unit="units", value=self._wanted)
        known = targets.positions_of
        if self._forgets:
            targets.positions_of = lambda *_: {}
        try:
            (verdict,) = self._acceptance.publish([target], desk.caller)
        finally:
            targets.positions_of = known
        assert isinstance(verdict, TargetVerdict)
        told = {target.order_id: "accepted"} if verdict.ordered else {}
        return told, verdict.accepted and not verdict.ordered
