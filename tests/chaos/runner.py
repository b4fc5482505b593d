"""A strategy in a process of its own, which may be killed.

It writes down what it knows of the world's activation.
"""

import json
import os
import sys
import time
from pathlib import Path

from qmtl_sdk import QmtlError, Runner
from qmtl_sdk.contracts.topic_state import state_hash
from tests.support.strategies import Trend


def main(world: str, file: Path) -> None:
    while True:
        try:
            result = Runner.submit(Trend, world=world)
            if result.error_code != "E_UNAVAILABLE":
                break
        except QmtlError as error:
            print(error, flush=True)
            time.sleep(0.3)
    while True:
        running = result.running
        stream = running.stream if running is not None else None
        events = stream.states["activation"].events if stream is not None else {}
        said = {
            "pid": os.getpid(),
            "running": running is not None,
            "state_hash": state_hash({subject: event.data for subject, event in events.items()}),
        }
        aside = file.with_suffix(".new")
        aside.write_text(json.dumps(said))
        os.replace(aside, file)
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
