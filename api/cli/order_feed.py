"""The orders of a world as they come and change, until Ctrl-C.

1. The number at which the order log ends is read, and then the newest orders are shown.
2. What changes after that number is read again and again. An order is shown where it differs from what was
   shown of it before, since a change may come between the two readings of step 1.
3. A Gateway that is away is waited for. The reading goes on from the same number: no change is missed.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NoReturn

from api.cli.connection import gateway
from api.cli.names import StrategyNames
from api.cli.output import errors
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.order_list import ChangesOfWorld, OrderFilter, OrderSelection
from qmtl_sdk.contracts.orders import OrderRecord
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.runtime.client import GatewayClient

POLL_S = 0.5
"""Seconds between two looks at the order log."""
RETRY_S = 1.0
"""Seconds before a Gateway that is away is tried again."""
# Orders of which it is kept what was shown: more than change between two readings.
_REMEMBERED = 10_000

Show = Callable[[Sequence[OrderRecord], StrategyNames], None]
"""Prints orders."""


class OrderFeed:
    """Shows the newest orders of a world that a filter selects, and then their changes."""

    def __init__(self, world: str, wanted: OrderFilter, show: Show) -> None:
        self._world = world
        self._wanted = wanted
        self._show = show
        self._after: int | None = None
        self._away = False
        self._shown: OrderedDict[str, object] = OrderedDict()

    def run(self) -> NoReturn:
        """Show changes until Ctrl-C.

        Raises QmtlError: what the Gateway refuses, and E_UNAVAILABLE where it was never reached.
        """
        while True:
            try:
                with gateway() as client:
                    self._read(client)
            except QmtlError as error:
                if self._after is None or not (error.status >= 500 or error.code == "E_RATE"):
                    raise
                self._note_away(error)
                time.sleep(RETRY_S)

    def _read(self, client: GatewayClient) -> NoReturn:
        names = StrategyNames(client, self._world)
        if self._after is None:
            end = client.order_changes(ChangesOfWorld(world_id=self._world)).after
            self.show_changed(client.list_orders(self._world, self._wanted), names)
            self._after = end
        while True:
            found = client.order_changes(self._changes_after(self._after))
            self._note_back()
            self.show_changed(found.orders, names)
            self._after = found.after
            if not found.more:
                time.sleep(POLL_S)

    def _changes_after(self, after: int) -> ChangesOfWorld:
        selected = {name: getattr(self._wanted, name) for name in OrderSelection.model_fields}
        return ChangesOfWorld(world_id=self._world, after=after, **selected)

    def show_changed(self, orders: Sequence[OrderRecord], names: StrategyNames) -> None:
        """Show the orders that differ from what was shown of them."""
        states = {item.order.order_id: (item.state, item.fill, len(item.changes)) for item in orders}
        changed = [
            item for item in orders if self._shown.get(item.order.order_id) != states[item.order.order_id]
        ]
        if changed:
            self._show(changed, names)
        for order_id, state in states.items():
            self._shown[order_id] = state
            self._shown.move_to_end(order_id)
        while len(self._shown) > _REMEMBERED:
            self._shown.popitem(last=False)

    def _note_away(self, error: QmtlError) -> None:
        if not self._away:
            errors.print(printable(f"{error}; orders are shown again when it is back"), markup=False)
        self._away = True

    def _note_back(self) -> None:
        if self._away:
            errors.print("the Gateway is back", markup=False)
        self._away = False
