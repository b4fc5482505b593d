"""The fills that are recorded already: some venues report all fills of an open order each time."""

from collections.abc import Sequence

from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.orders import ENDED, OrderReport

# Orders whose fills are remembered at most; those of others are recorded again, which changes nothing.
_ORDERS = 10_000


class RecordedFills:
    """Remembers the fills of open orders that this process has recorded."""

    def __init__(self) -> None:
        # By order id: fills by account and id.
        self._known: dict[str, dict[tuple[str, str], Fill]] = {}

    def without(self, reports: Sequence[OrderReport]) -> list[OrderReport]:
        """Return the reports without fills that are recorded with the same content.

        The fence is held while fills are looked up in the ledger.
        """
        found = list[OrderReport]()
        for report in reports:
            known = self._known.get(report.order_id, {})
            new = tuple(fill for fill in report.fills if known.get((fill.account, fill.fill_id)) != fill)
            found.append(
                report if len(new) == len(report.fills) else report.model_copy(update={"fills": new})
            )
        return found

    def note(self, reports: Sequence[OrderReport]) -> None:
        """Remember the fills of reports that were recorded, while their orders are open."""
        for report in reports:
            if report.state in ENDED:
                self._known.pop(report.order_id, None)
            elif report.fills:
                known = self._known.setdefault(report.order_id, {})
                known.update({(fill.account, fill.fill_id): fill for fill in report.fills})
        while len(self._known) > _ORDERS:
            self._known.pop(next(iter(self._known)))
