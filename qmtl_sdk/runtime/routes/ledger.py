"""Fills, positions and the ledger."""

import json
from datetime import datetime

from pydantic import TypeAdapter

from qmtl_sdk.contracts.equity_report import DEFAULT_REPORT_DAYS, EquityReport
from qmtl_sdk.contracts.fills import FillBatch, FillsRecorded
from qmtl_sdk.contracts.ledger import Booking, HeldPosition, LedgerCheck, LedgerLine
from qmtl_sdk.contracts.position_summary import LARGEST, PositionSummary
from qmtl_sdk.contracts.reconciliation import Reconciliation
from qmtl_sdk.runtime.routes.transport import Transport


class LedgerRoutes(Transport):
    """Fills, positions and the ledger."""

    def report_fills(self, batch: FillBatch) -> FillsRecorded:
        """Report fills that a venue executed; safe to repeat."""
        return FillsRecorded.model_validate(self._call("POST", "/fills", batch))

    def positions(
        self, world_id: str, as_of: datetime | None = None, strategy_id: str = "", closed: bool = False
    ) -> list[HeldPosition]:
        """List all positions, however many requests that takes."""
        params: dict[str, str | bool] = {"strategy_id": strategy_id, "closed": closed}
        if as_of is not None:
            params["as_of"] = as_of.isoformat()
        found = list[HeldPosition]()
        while page := self._call("GET", f"/worlds/{world_id}/positions", params=params):
            found += TypeAdapter(list[HeldPosition]).validate_python(page)
            params["after"] = json.dumps((found[-1].strategy_id, found[-1].account, found[-1].symbol))
        return found

    def position_summary(self, world_id: str, largest: int = LARGEST) -> PositionSummary:
        """Add up what strategies hold and have earned, in all and since midnight UTC."""
        path, params = f"/worlds/{world_id}/positions/summary", {"largest": largest}
        return PositionSummary.model_validate(self._call("GET", path, params=params))

    def equity_report(
        self, world_id: str, days: int = DEFAULT_REPORT_DAYS, strategy_id: str = ""
    ) -> EquityReport:
        """Report the equity of strategies by the ledger, beside what their backtests say."""
        params = {"days": days, "strategy_id": strategy_id}
        return EquityReport.model_validate(self._call("GET", f"/worlds/{world_id}/report", params=params))

    def ledger(
        self, world_id: str, after: int = 0, limit: int = 100, strategy_id: str = ""
    ) -> list[LedgerLine]:
        params = {"after": after, "limit": limit, "strategy_id": strategy_id}
        found = self._call("GET", f"/worlds/{world_id}/ledger", params=params)
        return TypeAdapter(list[LedgerLine]).validate_python(found)

    def book(self, world_id: str, booking: Booking) -> bool:
        """Book an entry that is no fill; safe to repeat. Returns whether it was new."""
        answer = self._call("POST", f"/worlds/{world_id}/ledger", booking)
        return FillsRecorded.model_validate(answer).recorded == 1

    def verify_ledger(self, world_id: str) -> LedgerCheck:
        return LedgerCheck.model_validate(self._call("POST", f"/worlds/{world_id}/ledger/verify"))

    def rebuild_ledger(self, world_id: str) -> LedgerCheck:
        return LedgerCheck.model_validate(self._call("POST", f"/worlds/{world_id}/ledger/rebuild"))

    def reconciliations(self, world_id: str) -> list[Reconciliation]:
        """List the newest comparison of each broker's account, with what concerns a world."""
        found = self._call("GET", f"/worlds/{world_id}/reconciliation")
        return TypeAdapter(list[Reconciliation]).validate_python(found)
