"""The demo's last part: a strategy that trades is brought to dryrun and then live, each by an apply that other people approve, while it goes on trading; then it is rolled back.

The approvals are given as a person gives them: with `qmtl world approve … --as ana`. Live in a replay world reaches the paper venue only. The strategy's own gate closes
at the freeze; so that the fence has something to refuse, one order goes past it.
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

from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderRecord, OrderVerdict
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.runner import Runner
from qmtl_sdk.samples.strategies.trading import HourlyTrader

PEOPLE = ("ana", "ben")
ENOUGH = 5


def world_spec(now: datetime) -> dict[str, Any]:
    """Hours of EUR/USD, ten a second. It allows live, which in a replay world is paper."""
    fx = {
        "name": "fx",
        "source": "replay",
        "path": "sample:eurusd_1h.parquet",
        "interval": "1h",
        "calendar": "24/5",
        "streams": {"EURUSD": ["EURUSD", "price"]},
    }
    return {
        "world": f"demo_trading_{now:%Y%m%d_%H%M%S}",
        "description": "replayed hours, from judgment to live on paper",
        "clock": {"replay": {"start": "2017-04-03T00:00:00Z", "speed": 36_000}},
        "data": {"presets": [fx]},
        "allow_live": True,
    }


POLICY: dict[str, Any] = {
    "selection": {"gates": {"and": ["trades >= 20"]}, "score": "sample_days"},
    "decision_ttl": 3600,
}


def gated(fingerprint: str) -> dict[str, Any]:
    """The policy with what a promotion needs: the data that it was judged on, who must agree, and how far it may go."""
    gating = {
        "domains": {"from": "backtest", "to": "live"},
        "dataset_fingerprint": fingerprint,
        "share_policy": "feature-artifacts-only",
        "approvals": {"required": 1, "live": 2},
    }
    return {
        **POLICY,
        "gating_policy": {**gating, "apply": {"freeze_timeout_ms": 5000, "drain_timeout_ms": 5000}},
    }


def run(client: GatewayClient, now: datetime) -> dict[str, Any]:
    """Raises QmtlError (E_STACK) where something does not come."""
    spec = world_spec(now)
    world = spec["world"]
    client.create_world(spec, POLICY, live=True)
    judged = Runner.submit(HourlyTrader, world=world, run=False)
    client.add_policy(world, gated(client.fingerprints(world)[0]))
    client.decide(world, f"demo-{now:%H%M%S%f}")
    dryrun = promote(client, world, "dryrun", PEOPLE[:1])
    told: Counter[str] = Counter()
    sent: list[Order] = []

    def hear(order: Order, verdict: OrderVerdict) -> None:
        sent.append(order)
        told[f"{order.execution_domain.value}:{verdict.reason.value if verdict.reason else 'accepted'}"] += 1

    try:
        running = Runner.submit(HourlyTrader, world=world, on_verdict=hear).running
        if running is None:
            raise QmtlError("E_STACK", "the demo's trader was not switched on", "qmtl world explain says why")
        _until(lambda: told["dryrun:accepted"] >= ENOUGH, "orders in dryrun")
        with unheeding(client, sent[-1]):
            live = promote(client, world, "live", PEOPLE)
        _until(lambda: told["live:accepted"] >= ENOUGH, "orders after the apply")
        back = client.apply(
            world,
            ApplyRequest(run_id=f"back-{live.run_id}", rollback_of=live.run_id, reason="the demo is over"),
        )
        back = client.apply_status(world, back.run_id, wait_s=30)
        client.halt(world, "the demo is over")
    finally:
        Runner.shutdown()
    records = client.orders(world, limit=1000)
    gate = client.gate(world)
    return {
        "world": world,
        "strategy_id": judged.strategy_id,
        "dryrun": told_of(dryrun),
        "apply": told_of(live),
        "rollback": told_of(back),
        "orders": {
            "accepted": gate.orders.get("accepted", 0),
            "refused_by_reason": {
                reason: count for reason, count in sorted(gate.orders.items()) if reason != "accepted"
            },
            "before": _count(records, None, started(live)),
            "during": _count(records, started(live), ended(live)),
            "after": _count(records, ended(live), None),
            "kept_back_by_the_gate": dict(running.orders.blocked),
            "filled": sum(record.fill is not None for record in records),
        },
        "audit_entries": client.audit(world, limit=1, verify=True)["verified"],
    }


@contextmanager
def unheeding(client: GatewayClient, order: Order) -> Iterator[None]:
    """While the block runs: an order like this one, sent by someone who pays no heed to the freeze; at the latest when all is over, and late then."""
    over = threading.Event()

    def send() -> None:
        while client.gate(order.world_id).state == "open" and not over.wait(0.02):
            pass
        client.publish_orders([order.model_copy(update={"order_id": f"order:{uuid.uuid4().hex}"})])

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            yield
        finally:
            over.set()
        sending.result()


def promote(client: GatewayClient, world: str, to: str, people: tuple[str, ...]) -> ApplyStatus:
    """Ask for an apply, and have it approved on the command line."""
    run_id = f"{to}-{time.time_ns() // 1_000_000}"
    client.apply(
        world,
        ApplyRequest.model_validate({"run_id": run_id, "to": to, "reason": "the demo"}),
        live=to == "live",
    )
    for person in people:
        command = [
            sys.executable,
            "-m",
            "api.cli",
            "world",
            "approve",
            world,
            run_id,
            "--as",
            person,
            "--live",
            "--reason",
            f"{person} has looked at it",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise QmtlError(
                "E_STACK",
                f"{person} could not approve: {done.stderr.strip()}",
                "qmtl world applies shows the apply",
            )
    found = client.apply_status(world, run_id, wait_s=30)
    if found.outcome != "completed":
        raise QmtlError(
            "E_STACK",
            f"the demo's apply did not complete: {found.waits_for}",
            "qmtl world applies shows the apply",
        )
    return found


def told_of(found: ApplyStatus) -> dict[str, Any]:
    steps = [step.json_dict() for step in found.steps]
    approvals = [item.json_dict() for item in found.approvals]
    acks = [
        {"phase": item.phase, "kind": item.kind, "in_time": item.at is not None and not item.late}
        for item in found.acks
    ]
    return {
        "run_id": found.run_id,
        "outcome": found.outcome,
        "steps": steps,
        "approvals": approvals,
        "acks": acks,
        "epoch_before": found.epoch_before,
        "epoch_after": found.epoch_after,
    }


def started(found: ApplyStatus) -> datetime:
    return next(step.started for step in found.steps if step.name == "freeze")


def ended(found: ApplyStatus) -> datetime:
    """When orders were let in again."""
    return next(step.started for step in found.steps if step.name == "unfreeze")


def _count(records: list[OrderRecord], since: datetime | None, until: datetime | None) -> dict[str, int]:
    """What the fence said, in a stretch of time."""
    found = [
        record
        for record in records
        if (since is None or record.at >= since) and (until is None or record.at < until)
    ]
    return dict(
        sorted(
            Counter(
                f"{record.order.execution_domain.value} {record.reason.value if record.reason else 'accepted'}"
                for record in found
            ).items()
        )
    )


def _until(condition: Any, what: str, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise QmtlError(
                "E_STACK",
                f"the demo waited in vain for {what}",
                "qmtl world orders and qmtl world status say more",
            )
        time.sleep(0.05)


def text(found: dict[str, Any]) -> list[str]:
    """For people."""
    live, orders = found["apply"], found["orders"]
    steps = ", ".join(step["name"] for step in live["steps"])
    people = " and ".join(item["actor"] for item in live["approvals"])
    return [
        f"Trading in {found['world']}: judged, brought to dryrun, then live (on paper), then rolled back",
        f"  apply {live['run_id']}: {steps}; approved by {people}; epoch {live['epoch_before']} → {live['epoch_after']}",
        f"  orders before {orders['before']}, during {orders['during'] or 'none'}, after {orders['after']}; {orders['filled']} filled",
        f"  kept back by the strategy's own gate: {sum(orders['kept_back_by_the_gate'].values())}; audit trail of {found['audit_entries']} entries verified",
    ]
