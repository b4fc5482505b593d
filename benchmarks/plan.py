"""Plans of rebalancings: 10,000 positions over 50 worlds, and 100,000.

The request is read from plain values and planned, each timed apart, in a process of its own: `peak_mb` is the
most memory that it ever held, and `base_mb` the most before it read the request.
"""

import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from activities.allocation.orders import orders_from_plan
from activities.allocation.planner import plan_rebalancing
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest

SIZES = {10_000: 1.0, 100_000: 10.0}
"""Positions, and the seconds within which they are to be planned."""

WORLDS = 50
STRATEGIES = 10
VENUES = 4
SYMBOLS = 500
ROUNDS = 3


def body(positions: int) -> dict[str, Any]:
    """Return a request over random portfolios, the same for the same number of positions."""
    draw = random.Random(positions)
    instruments = list(itertools.product(range(VENUES), range(SYMBOLS)))
    marks = {instrument: f"{draw.uniform(1, 900):.2f}" for instrument in instruments}
    held = list(itertools.product(range(WORLDS), range(STRATEGIES), instruments))
    return {
        "worlds": [_change(world, draw) for world in range(WORLDS)],
        "positions": [
            {
                "world_id": f"w{world}",
                "strategy_id": f"s{strategy}",
                "venue": f"V{venue}",
                "symbol": f"S{symbol}",
                "quantity": f"{draw.uniform(-500, 500):.3f}",
                "mark": marks[venue, symbol],
            }
            for world, strategy, (venue, symbol) in draw.sample(held, positions)
        ],
        "instruments": {"lot": "0.001", "min_trade_notional": "5", "cost_bps": "2.5", "margin_rate": "0.2"},
        "limits": {"cash": "1e15", "max_turnover": "1e15"},
    }


def _change(world: int, draw: random.Random) -> dict[str, Any]:
    return {
        "world_id": f"w{world}",
        "before": f"{draw.uniform(0.01, 0.02):.6f}",
        "after": f"{draw.uniform(0.01, 0.02):.6f}",
        "strategies": [
            {
                "strategy_id": f"s{strategy}",
                "before": f"{draw.uniform(0.001, 0.005):.6f}",
                "after": f"{draw.uniform(0.001, 0.005):.6f}",
            }
            for strategy in range(2)
        ],
    }


def measure(positions: int) -> dict[str, Any]:
    """Time one size in this process."""
    values = body(positions)
    base_mb = _peak_mb()
    began = time.perf_counter()
    request = MultiWorldRebalanceRequest.model_validate(values)
    read_s = time.perf_counter() - began
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        plan = plan_rebalancing(request)
        times.append(time.perf_counter() - began)
    orders = orders_from_plan(plan, "bench").orders
    plan_s = sorted(times)[ROUNDS // 2]
    return {
        "workload": "rebalancing plan",
        "positions": positions,
        "worlds": WORLDS,
        "orders": len(orders),
        "dropped": len(plan.dropped),
        "read_s": round(read_s, 3),
        "plan_s": round(plan_s, 3),
        "limit_s": SIZES[positions],
        "positions_per_s": round(positions / plan_s),
        "base_mb": base_mb,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> int:
    """Read the peak of this process. `getrusage` would count its parent's, from before the exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) // 1024


def run() -> Iterator[dict[str, Any]]:
    for positions in SIZES:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.plan", str(positions)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        yield json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
