"""`python -m tests.chaos [RUNS] [SEED]`: a line of JSON for each run, and a summary. Exit code 1 if any promise was broken."""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from temporal.shutdown import leave
from tests.chaos.stream import Chaos


def main(runs: int, seed: int) -> int:
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
                events, broken, reconnects = events + report.events, broken + bool(report.violations), reconnects + report.reconnects
        finally:
            chaos.close()
    print(json.dumps({"runs": runs, "first_seed": seed, "events": events, "kills": dict(kills), "reconnects": reconnects, "runs_with_violations": broken}), flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    leave(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
