"""Reports of equity: what strategies made by the ledger, beside what their backtests say.

The figures of each owner are a pure function of its days, its capital and its evidence.
Owners are read one by one, so that their days are not in memory together.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from sqlalchemy import Connection

from activities.decisions.candidate import Candidate
from activities.decisions.evidence import newest_evidence
from activities.fence.scales import WorldScales, scaled, scales_of, weights_of
from activities.ledger.equity import EquityDay, OwnerDays, days_by_owner
from activities.ledger.exposures import WHOLE_WORLD, all_totals
from activities.storage.database import Database
from activities.worlds.specs import world_of, world_row
from qmtl_sdk.contracts.amounts import EXACT, ZERO, plain
from qmtl_sdk.contracts.capital import Capital
from qmtl_sdk.contracts.equity_report import (
    BacktestFigures,
    EquityFigures,
    EquityReport,
    ReportDay,
    ReportQuery,
)

_BASIS_POINTS = 10_000


class SqlEquityReport:
    """Reports the equity of worlds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def report(self, world_id: str, query: ReportQuery, now: datetime) -> EquityReport:
        """Report the equity of a world's strategies, and of the whole world where no strategy is asked for.

        Strategies that never traded are left out. Raises QmtlError (E_WORLD_UNKNOWN).
        """
        shown = query.strategy_id or WHOLE_WORLD
        figures = list[EquityFigures]()
        with self._database.read() as session:
            spec = world_of(world_row(session, world_id)).spec
            connection = session.connection()
            strategies = [shown] if shown else _strategies(connection, world_id)
            capitals = _capitals(connection, world_id, spec.capital, strategies)
            found = {
                item.strategy_id: backtest_of(item)
                for item in newest_evidence(session, world_id, now, strategies)
            }
            for owner_days in days_by_owner(connection, world_id, now, query.days, query.strategy_id or None):
                name = owner_days.owner.strategy_id
                made = figures_of(owner_days, capitals.get(name), found.get(name))
                figures.append(
                    made.model_copy(update={"series": _shown(owner_days.series())}) if name == shown else made
                )
        figures.sort(key=lambda each: (each.strategy_id, each.account))
        return EquityReport(
            world_id=world_id,
            currency=spec.capital.currency if spec.capital else "",
            first=now.date() - timedelta(days=query.days - 1),
            last=now.date(),
            strategies=tuple(each for each in figures if each.strategy_id != WHOLE_WORLD),
            accounts=tuple(each for each in figures if each.strategy_id == WHOLE_WORLD),
        )


def _strategies(connection: Connection, world_id: str) -> Sequence[str]:
    """Return those that ever traded, by id."""
    return sorted({owner.strategy_id for owner in all_totals(connection, world_id)} - {WHOLE_WORLD})


def _capitals(
    connection: Connection, world_id: str, capital: Capital | None, strategies: Sequence[str]
) -> Mapping[str, Decimal]:
    """Return what each strategy, and the whole world, trades with now."""
    if capital is None:
        return {}
    world = scales_of(connection, [world_id]).get(world_id, WorldScales()).world
    found = {WHOLE_WORLD: scaled(capital.amount, world.value)}
    weights = weights_of(connection, [(world_id, each) for each in strategies]) if strategies else {}
    for each in strategies:
        found[each] = plain(EXACT.multiply(capital.amount, weights.get((world_id, each), ZERO)))
    return found


def figures_of(
    its: OwnerDays, capital: Decimal | None, backtest: BacktestFigures | None = None
) -> EquityFigures:
    """Return the figures of an owner from its days."""
    newest, opening, base = its.newest, its.opening, capital or None
    earned = EXACT.subtract(newest.profit, opening.profit)
    turnover = plain(EXACT.subtract(newest.traded, opening.traded))
    costs = plain(EXACT.subtract(newest.fees, opening.fees))
    return EquityFigures(
        strategy_id=its.owner.strategy_id,
        account=its.owner.account,
        capital=capital,
        days=its.number,
        profit=plain(newest.profit),
        earned=plain(earned),
        period_return=_share(earned, EXACT.add(base, opening.profit)) if base else None,
        max_drawdown=float(its.max_drawdown(base)) if base else None,
        gross=plain(newest.gross),
        net=plain(newest.net),
        gross_share=_share(newest.gross, base),
        net_share=_share(newest.net, base),
        turnover=turnover,
        costs=costs,
        costs_bps=_share(EXACT.multiply(costs, Decimal(_BASIS_POINTS)), turnover),
        backtest=backtest,
    )


def backtest_of(found: Candidate | None) -> BacktestFigures | None:
    """Return what a strategy's newest evidence says; None where it has none, or none that was accepted."""
    if found is None or not found.metrics:
        return None
    return BacktestFigures(
        total_return=found.metrics.get("total_return"),
        sharpe=found.metrics.get("sharpe"),
        max_drawdown=found.metrics.get("max_drawdown"),
        data_first=found.data_first,
        data_last=found.data_last,
        self_reported=found.self_reported,
    )


def _share(amount: Decimal, of: Decimal | None) -> float | None:
    """Return an amount as a share of another one; None where that is not above 0."""
    return float(Fraction(amount) / Fraction(of)) if of is not None and of > 0 else None


def _shown(series: Sequence[EquityDay]) -> tuple[ReportDay, ...]:
    return tuple(
        ReportDay(
            day=each.day, **{name: plain(value) for name, value in each._asdict().items() if name != "day"}
        )
        for each in series
    )
