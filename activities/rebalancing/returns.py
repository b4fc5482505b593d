"""The domain whose profit counts for the share of a world, and daily returns there for equal risk.

A return is what a whole day in UTC has earned, as a part of what the world traded with at its end: its
capital times what rebalancings had made of it by then. So a change of its share is not taken for risk.
"""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal

from sqlmodel import Session, col, select

from activities.fence.scales import WorldScales, scale_at, scaled
from activities.ledger.equity import daily_equity
from activities.ledger.exposures import WHOLE_WORLD, ExposureKey, totals_of
from activities.order_settings import Accounts
from activities.storage.tables import ActivationRow, AllocationRow
from activities.storage.transactions import utc_text
from activities.worlds.specs import world_of, world_row
from qmtl_sdk.contracts.domains import Domain

RETURN_DAYS = 60
"""Whole days whose returns count, at most."""

_ROUNDED = Context(prec=28)


def counted_domain(session: Session, world_id: str, accounts: Accounts) -> Domain:
    """Return the domain in which a world trades now: profit in another one is not its own.

    Live, where the world allows live and a strategy of it is active there, or its live account has an entry.
    Profit on paper, which authors make with prices of their own, says nothing of such a world.
    """
    if world_of(world_row(session, world_id)).spec.allow_live:
        mine = (ActivationRow.world_id == world_id, col(ActivationRow.active), ActivationRow.mode == "live")
        if session.exec(select(ActivationRow.strategy_id).where(*mine).limit(1)).first() is not None:
            return Domain.LIVE
        if totals_of(session.connection(), world_id, [ExposureKey(WHOLE_WORLD, accounts[Domain.LIVE])]):
            return Domain.LIVE
    return Domain.DRYRUN


def daily_returns(
    session: Session, world_id: str, account: str, capital: Decimal, now: datetime
) -> list[Decimal]:
    """Read the returns of a world's last whole days, oldest first, from the first one in which it traded.

    The days of the account count. Days without a share are left out.
    """
    row = session.get_one(AllocationRow, world_id)
    present = WorldScales.stored(row.scales).world
    returns = []
    for day, earned in sorted(_earned(session, world_id, account, now).items()):
        end = utc_text(datetime.combine(day + timedelta(days=1), time(), UTC))
        traded_with = scaled(capital, scale_at(row.past, present, end))
        if traded_with:
            returns.append(_ROUNDED.divide(earned, traded_with))
    return returns


def _earned(session: Session, world_id: str, account: str, now: datetime) -> dict[date, Decimal]:
    """Read what each whole day has earned at an account."""
    series = daily_equity(session.connection(), world_id, now, RETURN_DAYS + 1, WHOLE_WORLD)
    days = series.get(ExposureKey(WHOLE_WORLD, account), ())
    return {day.day: day.earned for day in days if day.day < now.date()}
