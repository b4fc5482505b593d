"""`python -m benchmarks [SUITE]`: run the suites and print a JSON line for each workload."""

import json
import sys

from benchmarks import applies, identity, idle, judgment, ledger, orders, plan, stream, submit
from temporal.shutdown import exit_process
from tests.support.machine import exit_on_sigterm

SUITES = {
    "identity": identity.run,
    "submit": submit.run,
    "stream": stream.run,
    "orders": orders.run,
    "applies": applies.run,
    "judgment": judgment.run,
    "ledger": ledger.run,
    "plan": plan.run,
    "idle": idle.run,
}


def main() -> int:
    wanted = sys.argv[1:] or list(SUITES)
    unknown = [name for name in wanted if name not in SUITES]
    if unknown:
        print(f"bench: there is no suite {unknown[0]!r}; there are: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    for name in wanted:
        for line in SUITES[name]():
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    exit_on_sigterm()
    exit_process(main())
