"""The demo's part on capital: two worlds with three strategies get other shares of it.

1. Judge the strategies, promote both worlds to dryrun, and run them until each holds what it wants.
2. Give the worlds shares of the capital, and plan other ones. Two strategies of one world hold the opposite:
   what nets out they cross, the rest is ordered.
3. `ana` approves on the command line; then the run sends the orders and waits for their fills.
"""

import time
from datetime import datetime
from decimal import Decimal
from typing import Any

from api.cli.allocations import changed_request
from api.cli.demo.trading import approve_on_command_line, promote
from api.cli.demo.waiting import LIMIT_S, wait_until
from api.cli.demo.worlds import SHARING_POLICY, sharing_worlds, with_promotion
from qmtl_sdk.contracts.allocations import AllocationUpdate
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import HeldPosition
from qmtl_sdk.contracts.rebalance_runs import RebalanceApply, RebalanceStatus
from qmtl_sdk.nodes.strategy import Strategy
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.runner import Runner
from qmtl_sdk.samples.strategies.holding import LongEuro, ShortEuro, SomeEuro

STRATEGIES: tuple[tuple[type[Strategy], ...], ...] = ((LongEuro, ShortEuro), (SomeEuro,))
"""The strategies of each world."""
BEFORE = ("0.06", "0.02")
"""The shares of the worlds before. Small ones: other worlds of the installation may have shares too."""
AFTER = ("0.04", "0.03")
"""The shares of the worlds after."""


def run_rebalancing(client: GatewayClient, now: datetime) -> dict[str, Any]:
    """Return the plan, its orders and what came of them. Raises QmtlError (E_STACK) where something fails."""
    specs = sharing_worlds(now)
    worlds = [spec["world"] for spec in specs]
    for spec, strategies in zip(specs, STRATEGIES, strict=True):
        _begin(client, spec, strategies)
    try:
        for world, strategies in zip(worlds, STRATEGIES, strict=True):
            for strategy in strategies:
                Runner.submit(strategy, world=world)
        wait_until(lambda: _hold_all(client, worlds), "the positions of both worlds")
        _set_shares(client, worlds, BEFORE)
        before = _positions(client, worlds)
        found = _rebalance(client, worlds, f"rebalance-{time.time_ns() // 1_000_000}")
        after = _positions(client, worlds)
        for world in worlds:
            client.halt(world, "the demo is over")
    finally:
        Runner.shutdown()
    _set_shares(client, worlds, ("0", "0"))  # so that the next demo finds room
    assert found.plan is not None
    assert found.report is not None
    return {
        "run_id": found.run_id,
        "outcome": found.outcome,
        "worlds": {
            world: {"before": before, "after": after}
            for world, before, after in zip(worlds, BEFORE, AFTER, strict=True)
        },
        "deltas": [item.json_dict() for item in found.plan.deltas],
        "dropped": [item.json_dict() for item in found.plan.dropped],
        "orders": found.report.orders,
        "fills": found.report.filled,
        "crossed": found.report.crossed,
        "tracking_error": found.report.tracking_error,
        "largest_gap_in_lots": str(max(_gaps(before, after))),
        "ledger_balanced": all(client.verify_ledger(world).is_good for world in worlds),
    }


def _begin(client: GatewayClient, spec: dict[str, Any], strategies: tuple[type[Strategy], ...]) -> None:
    """Create a world, judge its strategies and take them to dryrun."""
    world = spec["world"]
    client.create_world(spec, SHARING_POLICY)
    for strategy in strategies:
        Runner.submit(strategy, world=world, run=False)
    client.add_policy(world, with_promotion(SHARING_POLICY, client.fingerprints(world)[0]))
    client.decide(world, f"demo-{world}")
    promote(client, world, "dryrun", ("ana",))


def _hold_all(client: GatewayClient, worlds: list[str]) -> bool:
    """Whether every strategy holds something, and no order is open."""
    held = [len(client.positions(world)) for world in worlds]
    quiet = not any(client.fence(world).open_orders for world in worlds)
    return quiet and held == [len(strategies) for strategies in STRATEGIES]


def _set_shares(client: GatewayClient, worlds: list[str], shares: tuple[str, ...]) -> None:
    given = [{"world_id": world, "weight": share} for world, share in zip(worlds, shares, strict=True)]
    client.set_allocations(AllocationUpdate.model_validate({"allocations": given}))


def _positions(client: GatewayClient, worlds: list[str]) -> list[list[HeldPosition]]:
    return [client.positions(world) for world in worlds]


def _rebalance(client: GatewayClient, worlds: list[str], run_id: str) -> RebalanceStatus:
    """Request a run, have it approved on the command line, and return it at its end."""
    shares = [f"{world}={share}" for world, share in zip(worlds, AFTER, strict=True)]
    request = changed_request(client, shares, {"lot": "1"}).model_copy(update={"run_id": run_id})
    plan = client.plan_rebalancing(request)
    client.apply_rebalancing(RebalanceApply(request=request, etag=plan.etag, reason="the demo"))
    approve_on_command_line("rebalance-approve", run_id, "ana")
    found = client.rebalancing(run_id, wait_s=LIMIT_S)
    if found.outcome != "completed":
        raise QmtlError(
            "E_STACK",
            f"the demo's rebalancing did not complete: {found.waits_for}",
            f"qmtl world rebalance-status {run_id} shows it",
        )
    return found


def _gaps(before: list[list[HeldPosition]], after: list[list[HeldPosition]]) -> list[Decimal]:
    """Return by how many units each position differs from what the new share makes of the one before."""
    gaps = []
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        now = {item.strategy_id: item.position.quantity for item in new}
        for item in old:
            wanted = item.position.quantity * Decimal(AFTER[number]) / Decimal(BEFORE[number])
            gaps.append(abs(now.get(item.strategy_id, Decimal(0)) - wanted))
    return [round(gap, 6) for gap in gaps]
