"""What the worlds of a schedule of rebalancings must have, or none of its firings could request a run.

Whoever sets a schedule is told at once of what only people change. What ends by itself is checked at each
firing: a lock, a halt, a run that has not ended, few days of returns, and shares of other worlds that leave
no room.
"""

from decimal import Decimal

from sqlmodel import Session

from activities.allocation.store import allocations_of
from activities.order_settings import Accounts
from activities.rebalancing.returns import counted_domain
from activities.worlds.specs import world_of, world_row
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.rebalance_schedules import RebalanceScheduleBody
from qmtl_sdk.contracts.share_changes import common_rules
from qmtl_sdk.contracts.worlds import World


def require_workable(session: Session, schedule: RebalanceScheduleBody, accounts: Accounts) -> None:
    """Raise QmtlError where no firing could request a run until people change worlds of the schedule.

    E_ALLOCATION_MISSING: one has no share. E_WEIGHT: one has no capital, strategies of one have shares of
    their own, or some trade live and some on paper. E_BODY_INVALID: their rules of instruments differ.
    E_WORLD_UNKNOWN.
    """
    held = {item.world_id: item for item in allocations_of(session).allocations}
    worlds = {name: world_of(world_row(session, name)) for name in schedule.world_ids}
    for name, world in worlds.items():
        share = held[name].weight if name in held else None
        if lack := lack_of(world, share, schedule):
            raise lack
    moving = [  # all change by a method that reads results; a given share may be the present one
        item.world_id
        for item in schedule.worlds
        if schedule.method != "given" or item.target != held[item.world_id].weight
    ]
    if own := [name for name in moving if held[name].strategies]:
        raise QmtlError(
            "E_WEIGHT",
            f"strategies of {', '.join(own)} have shares of their own, which no schedule changes",
            "set the share without them: POST /allocations, or rebalance-apply --plan-file FILE",
        )
    if moving:
        common_rules({name: worlds[name].spec.instruments for name in moving})
    require_one_domain(session, schedule, accounts)


def lack_of(world: World, share: Decimal | None, schedule: RebalanceScheduleBody) -> QmtlError | None:
    """Return what a world lacks for a schedule, as the refusal of it."""
    name = world.spec.world
    if share is None:
        return QmtlError(
            "E_ALLOCATION_MISSING", f"{name} has no share", f"give it one: qmtl world allocations {name}=0.3"
        )
    if share == 0:
        return QmtlError(
            "E_ALLOCATION_MISSING",
            f"the share of {name} is 0",
            f"give it one: qmtl world rebalance-apply {name}=0.3; or, if no rebalancing has set it yet, "
            f"qmtl world allocations {name}=0.3",
        )
    if schedule.method != "given" and world.spec.capital is None:
        return QmtlError(
            "E_WEIGHT",
            f"{name} has no capital, by which {schedule.method} counts what it has earned",
            f"set `capital` in a FILE: qmtl world update {name} FILE; or write shares ({name}=0.3)",
        )
    return None


def require_one_domain(session: Session, schedule: RebalanceScheduleBody, accounts: Accounts) -> None:
    """Raise QmtlError (E_WEIGHT) where results on paper would move shares of worlds that trade live.

    Also the other way round: what simulated and real orders earn is not one measure. Given shares follow from
    no results.
    """
    if schedule.method == "given":
        return
    first: dict[Domain, str] = {}
    for name in schedule.world_ids:
        first.setdefault(counted_domain(session, name, accounts), name)
    if len(first) > 1:
        live, paper = first[Domain.LIVE], first[Domain.DRYRUN]
        raise QmtlError(
            "E_WEIGHT",
            f"{live} trades live and {paper} on paper: by {schedule.method}, results on paper would move "
            "shares of live capital",
            "set one schedule for each kind of world, or write shares (WORLD=0.3)",
        )
