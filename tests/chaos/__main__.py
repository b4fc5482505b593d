"""`python -m tests.chaos SUITE [RUNS] [SEED]`: a line for each run of a suite, and a summary.

RUNS is a count of what the suite repeats:

- stream: runs. orders, twofold: applies, twenty to a world. leaks: applies for each check of the fence.
- poison: hostile inputs, and as many normal submissions. routing, targets: seconds of each of the three runs.
- spot: orders that are sent through ccxt to an exchange that is killed, too.
- pairs: cases, each with one process killed or two.
- rebalancing: runs of rebalancings, each with a process killed at one of its steps.
- soak: seconds of a simulated year in which nothing is killed; `make soak` has 1800 of them.

Exit code 1 if any promise was broken, or a leak was not found; 2 if there is no such suite.
"""

import json
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

from activities.fence.rules import CHECKS
from temporal.shutdown import exit_process
from tests.chaos.orders import OrderChaos
from tests.chaos.pairs import pairs
from tests.chaos.poison import PoisonChaos
from tests.chaos.rebalancing import rebalancing
from tests.chaos.routing import Report as RoutingReport
from tests.chaos.routing import RoutingChaos
from tests.chaos.soak.run import FULL_S, soak
from tests.chaos.spot import Report as SpotReport
from tests.chaos.spot import SpotChaos
from tests.chaos.stream import Chaos
from tests.chaos.targets import TargetChaos
from tests.chaos.twofold import TwofoldChaos
from tests.support.machine import exit_on_sigterm
from tests.support.postgres import postgres_server
from tests.support.sabotage import SABOTAGES

APPLIES_A_RUN = 20
KILLS_AN_APPLY = 0.4


def stream(runs: int, seed: int) -> int:
    """Events flow while relay, Gateway, worker and runner are killed."""
    kills: Counter[str] = Counter()
    events = broken = reconnects = 0
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(Path(folder))
        try:
            chaos.up()
            for number in range(runs):
                report = chaos.run(seed + number)
                print(report.line(), flush=True)
                kills += report.kills
                events, broken, reconnects = (
                    events + report.events,
                    broken + bool(report.violations),
                    reconnects + report.reconnects,
                )
        finally:
            chaos.close()
    print(
        json.dumps(
            {
                "runs": runs,
                "first_seed": seed,
                "events": events,
                "kills": dict(kills),
                "reconnects": reconnects,
                "runs_with_violations": broken,
            }
        ),
        flush=True,
    )
    return 1 if broken else 0


def orders(applies: int, seed: int) -> int:
    """Orders and applies while worker, Gateway, Temporal server and runners are killed.

    `applies` in all, twenty to a world.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _orders(OrderChaos(Path(folder)), applies, seed)


def twofold(applies: int, seed: int) -> int:
    """The same over one PostgreSQL database, with two Gateways, workers, order routers and relays."""
    with postgres_server() as dsn, tempfile.TemporaryDirectory() as folder:
        return _orders(TwofoldChaos(Path(folder), dsn), applies, seed)


def _orders(chaos: OrderChaos, applies: int, seed: int) -> int:
    kills: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    violations = acknowledged = 0
    try:
        chaos.up()
        for number in range(-(-applies // APPLIES_A_RUN)):
            count = min(APPLIES_A_RUN, applies - number * APPLIES_A_RUN)
            report = chaos.run(seed + number, count, round(count * KILLS_AN_APPLY))
            print(report.line(), flush=True)
            kills += report.kills
            outcomes += report.applies
            verdicts += Counter(report.orders)
            violations += len(report.violations)
            acknowledged += report.acknowledged
    finally:
        chaos.close()
    summary = {
        "applies": sum(outcomes.values()),
        "outcomes": dict(outcomes),
        "kills": dict(kills),
        "orders": dict(verdicts),
        "acknowledged": acknowledged,
        "violations": violations,
    }
    print(json.dumps({"first_seed": seed, **summary}), flush=True)
    return 1 if violations else 0


def leaks(applies: int, seed: int) -> int:
    """The same with each check of the fence taken out in turn: the checker must find every one.

    Then with what refuses too much or stands still put in, in turn; and with nothing, which must be clean.
    """
    missed = sabotages(seed)
    for leak in CHECKS:
        with tempfile.TemporaryDirectory() as folder, closing(OrderChaos(Path(folder), leak.value)) as chaos:
            report = chaos.up().run(seed, applies, 0, thorough=True)
        print(
            json.dumps(
                {
                    "leak": leak.value,
                    "violations": len(report.violations),
                    "first": report.violations[:1],
                    "seconds": round(report.seconds, 1),
                }
            ),
            flush=True,
        )
        missed += [] if any(leak.value in found for found in report.violations) else [leak.value]
    print(json.dumps({"leaks": len(CHECKS), "missed": missed}), flush=True)
    return 1 if missed else 0


def sabotages(seed: int) -> list[str]:
    """Put each defect of `SABOTAGES` in, and none; return the names of those that were not found."""
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        chaos = OrderChaos(Path(folder))
        try:
            chaos.up()
            report = chaos.run(seed, 1, 0, acts=sorted({item.act for item in SABOTAGES.values()}))
            print(report.line(), flush=True)
            missed += ["none"] if report.violations else []
            for name, sabotage in SABOTAGES.items():
                chaos.sabotage(name)
                report = chaos.run(seed, 1, 0, acts=[sabotage.act])
                found = [item for item in report.violations if sabotage.finding in item]
                line = {"sabotage": name, "violations": len(report.violations), "first": found[:1]}
                print(json.dumps({**line, "seconds": round(report.seconds, 1)}), flush=True)
                missed += [] if found else [name]
        finally:
            chaos.close()
    print(json.dumps({"sabotages": len(SABOTAGES), "missed": missed}), flush=True)
    return missed


def poison(inputs: int, seed: int) -> int:
    """As many hostile inputs as normal submissions, while Gateway, worker, relay and router are killed."""
    with tempfile.TemporaryDirectory() as folder, closing(PoisonChaos(Path(folder))) as chaos:
        report = chaos.up().run(seed, inputs, inputs)
    print(report.line(), flush=True)
    return 1 if report.violations else 0


def routing(seconds: int, seed: int) -> int:
    """Kill the order router while orders flow to an unkind exchange; three runs of so many seconds.

    Then a short one with a router that believes at once that an order does not exist, which must be found.
    """
    broken = 0
    for number in range(3):
        broken += len(_route(seed + number, seconds).violations)
    missed = not _route(seed, min(seconds, 30), believes_404=True).violations
    print(json.dumps({"first_seed": seed, "violations": broken, "missed": missed}), flush=True)
    return 1 if broken or missed else 0


def _route(seed: int, seconds: int, believes_404: bool = False) -> RoutingReport:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(RoutingChaos(Path(folder), seed, believes_404)) as chaos,
    ):
        report = chaos.run(seconds)
    print(report.line(), flush=True)
    return report


def targets(seconds: int, seed: int) -> int:
    """Trade by targets at the unkind exchange; three runs of so many seconds, and one that must be found."""
    broken = 0
    for number in range(3):
        broken += len(_by_targets(seed + number, seconds).violations)
    missed = not _by_targets(seed, min(seconds, 20), forgets=True).violations
    print(json.dumps({"first_seed": seed, "violations": broken, "missed": missed}), flush=True)
    return 1 if broken or missed else 0


def _by_targets(seed: int, seconds: int, forgets: bool = False) -> RoutingReport:
    with tempfile.TemporaryDirectory() as folder, closing(TargetChaos(Path(folder), seed, forgets)) as chaos:
        report = chaos.run(seconds)
    print(report.line(), flush=True)
    return report


def spot(orders: int, seed: int) -> int:
    """Trade through ccxt while the router and the exchange are killed.

    Then a short run with a router that sends each attempt under another name, which must be found.
    """
    broken = len(_through_ccxt(seed, orders).violations)
    missed = not _through_ccxt(seed, min(orders, 40), nameless=True).violations
    print(json.dumps({"first_seed": seed, "violations": broken, "missed": missed}), flush=True)
    return 1 if broken or missed else 0


def _through_ccxt(seed: int, orders: int, nameless: bool = False) -> SpotReport:
    with tempfile.TemporaryDirectory() as folder, closing(SpotChaos(Path(folder), seed, nameless)) as chaos:
        report = chaos.run(orders)
    print(report.line(), flush=True)
    return report


SUITES = {
    "stream": (stream, 100),
    "orders": (orders, 200),
    "twofold": (twofold, 400),
    "leaks": (leaks, 6),
    "poison": (poison, 200),
    "routing": (routing, 60),
    "targets": (targets, 60),
    "spot": (spot, 500),
    "pairs": (pairs, 15),
    "rebalancing": (rebalancing, 200),
    "soak": (soak, FULL_S),
}

if __name__ == "__main__":
    exit_on_sigterm()
    name = sys.argv[1] if len(sys.argv) > 1 else "orders"
    if name not in SUITES:
        print(f"there is no suite {name!r}; the suites are {', '.join(SUITES)}", file=sys.stderr)
        sys.exit(2)
    run, count = SUITES[name]
    exit_process(
        run(int(sys.argv[2]) if len(sys.argv) > 2 else count, int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    )
