"""The demo's last part: a strategy trades in dryrun, goes live (on paper), and is rolled back.

1. Submit a strategy and promote it to dryrun; `ana` approves on the command line, as a person would.
2. Run it until it has traded, then promote it to live while it keeps trading; `ana` and `ben` approve.
3. During the freeze, send one order past the strategy's order gate, so that the fence refuses it.
4. Roll back, halt the world, and count the orders before, during and after the apply.
"""

import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from api.cli.demo.waiting import LIMIT_S, wait_until
from api.cli.demo.worlds import TRADING_POLICY, trading_world, with_promotion
from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderRecord, OrderRequest, OrderVerdict, order_id_prefix
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.runner import Runner
from qmtl_sdk.samples.strategies.trading import HourlyTrader

PEOPLE = ("ana", "ben")
ENOUGH_ORDERS = 5
"""Accepted orders to wait for in each stage."""
APPROVE_LIMIT_S = 60.0
"""Seconds that `qmtl world approve` may take."""


class OrderCounts:
    """Counts what the fence answered to a running strategy's orders, by domain."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, order: OrderRequest, verdict: OrderVerdict) -> None:
        """Count a verdict; called by the strategy's session."""
        self.counts[f"{order.execution_domain.value}:{verdict.reason or 'accepted'}"] += 1


def run_trading(client: GatewayClient, now: datetime) -> dict[str, Any]:
    """Return the applies and the orders around them. Raises QmtlError (E_STACK) where something fails."""
    spec = trading_world(now)
    world = spec["world"]
    client.create_world(spec, TRADING_POLICY, live=True)
    judged = Runner.submit(HourlyTrader, world=world, run=False)
    client.add_policy(world, with_promotion(TRADING_POLICY, client.fingerprints(world)[0]))
    client.decide(world, f"demo-{now:%H%M%S%f}")
    dryrun = promote(client, world, "dryrun", PEOPLE[:1])
    orders_seen = OrderCounts()
    try:
        running = Runner.submit(HourlyTrader, world=world, on_verdict=orders_seen.add).running
        if running is None:
            raise QmtlError(
                "E_STACK",
                "the demo's trader was not activated",
                f"qmtl world explain {world} {judged.strategy_id} says why",
            )
        wait_until(lambda: orders_seen.counts["dryrun:accepted"] >= ENOUGH_ORDERS, "orders in dryrun")
        accepted = client.orders(world, limit=1)[0].order
        with order_past_the_gate(client, accepted, SessionKey.of(running.grant)):
            live = promote(client, world, "live", PEOPLE)
        wait_until(lambda: orders_seen.counts["live:accepted"] >= ENOUGH_ORDERS, "orders after the apply")
        rollback = roll_back(client, world, live)
        client.halt(world, "the demo is over")
    finally:
        Runner.shutdown()
    records = client.orders(world, limit=1000)
    counts = client.fence(world).orders
    return {
        "world": world,
        "strategy_id": judged.strategy_id,
        "dryrun": apply_summary(dryrun),
        "apply": apply_summary(live),
        "rollback": apply_summary(rollback),
        "orders": {
            "accepted": counts.get("accepted", 0),
            "refused_by_reason": {
                reason: count for reason, count in sorted(counts.items()) if reason != "accepted"
            },
            "before": _count(records, None, freeze_started(live)),
            "during": _count(records, freeze_started(live), unfreeze_started(live)),
            "after": _count(records, unfreeze_started(live), None),
            "filled": sum(record.fill is not None for record in records),
        },
        "positions": [
            {"symbol": item.symbol, "account": item.account, "quantity": str(item.position.quantity)}
            for item in client.positions(world)
        ],
        "audit_entries": client.audit(world, limit=1, verify=True)["verified"],
    }


@contextmanager
def order_past_the_gate(client: GatewayClient, order: Order, session: SessionKey) -> Iterator[None]:
    """Send a copy of an order as soon as the world is frozen, or at the end of the block at the latest.

    It skips the strategy's order gate, which holds orders back during a freeze.
    """
    over = threading.Event()

    def send() -> None:
        while client.fence(order.world_id).state == "open" and not over.wait(0.02):
            pass
        new_id = order_id_prefix(order.world_id, order.strategy_id) + uuid.uuid4().hex
        copy = order.model_copy(update={"order_id": new_id, "session_id": session.session_id})
        client.publish_orders([copy], session)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            yield
        finally:
            over.set()
        sending.result()


def promote(client: GatewayClient, world: str, to: str, people: tuple[str, ...]) -> ApplyStatus:
    """Request an apply, have it approved on the command line, and return it once it has completed."""
    run_id = f"{to}-{time.time_ns() // 1_000_000}"
    request = ApplyRequest.model_validate({"run_id": run_id, "to": to, "reason": "the demo"})
    client.apply(world, request, live=to == "live")
    for person in people:
        approve_on_command_line("approve", run_id, person, world)
    found = client.apply_status(world, run_id, wait_s=LIMIT_S)
    if found.outcome != "completed":
        raise QmtlError("E_STACK", f"the demo's apply did not complete: {found.waits_for}", _remedy(world))
    return found


def approve_on_command_line(command_name: str, run_id: str, person: str, world: str = "") -> None:
    """Approve an apply or a rebalancing as a person does. Raises QmtlError (E_STACK)."""
    options = ["--yes", "--as", person, "--live", "--reason", f"{person} has reviewed it"]
    named = [world, run_id] if world else [run_id]
    command = [sys.executable, "-m", "api.cli", "world", command_name, *named, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=APPROVE_LIMIT_S)
    if done.returncode:
        raise QmtlError(
            "E_STACK", f"{person} could not approve: {done.stderr.strip()}", "qmtl status shows what runs"
        )


def _remedy(world: str) -> str:
    return f"qmtl world applies {world} lists its applies"


def roll_back(client: GatewayClient, world: str, apply: ApplyStatus) -> ApplyStatus:
    """Roll an apply back and return the rollback at its end. It needs no approval."""
    run_id = f"back-{apply.run_id}"
    client.apply(world, ApplyRequest(run_id=run_id, rollback_of=apply.run_id, reason="the demo is over"))
    return client.apply_status(world, run_id, wait_s=LIMIT_S)


def apply_summary(found: ApplyStatus) -> dict[str, Any]:
    """Return an apply's outcome, steps, approvals, acknowledgements and epochs as JSON."""
    acks = [
        {"phase": item.phase, "kind": item.kind, "in_time": item.at is not None and not item.late}
        for item in found.acks
    ]
    return {
        "run_id": found.run_id,
        "outcome": found.outcome,
        "steps": [step.json_dict() for step in found.steps],
        "approvals": [item.json_dict() for item in found.approvals],
        "acks": acks,
        "epoch_before": found.epoch_before,
        "epoch_after": found.epoch_after,
    }


def freeze_started(found: ApplyStatus) -> datetime:
    """Return when orders began to be refused."""
    return next(step.started for step in found.steps if step.name == "freeze")


def unfreeze_started(found: ApplyStatus) -> datetime:
    """Return when orders began to be accepted again."""
    return next(step.started for step in found.steps if step.name == "unfreeze")


def _count(records: list[OrderRecord], since: datetime | None, until: datetime | None) -> dict[str, int]:
    """Count orders of a period by domain and verdict."""
    counts = Counter(
        f"{record.order.execution_domain.value} {record.reason or 'accepted'}"
        for record in records
        if (since is None or record.at >= since) and (until is None or record.at < until)
    )
    return dict(sorted(counts.items()))
