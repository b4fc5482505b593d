"""`python -m tests.chaos.fuzz [EXAMPLES] [SEED]`.

Requests made from the Gateway's own OpenAPI document, valid and not, against a running Gateway.

No answer may be of class 5xx or outside the document: status, content type and body. Each operation is tried
twice: with parameters as they come, and in a world that there is. The exit code is 1 if any answer was, or if
fewer requests were made than asked for.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from temporal.shutdown import exit_process
from tests.support.machine import Machine, exit_on_sigterm
from tests.support.worlds import POLICY, world

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
KNOWN = '[parameters]\nworld_id = "equities"\n'


def fuzz(home: Path, examples: int, seed: int) -> tuple[int, list[str]]:
    """How many requests were made, and what schemathesis said of those that failed."""
    machine, made, failed = Machine(home, QMTL_GATEWAY__RATE_PER_S="1000000"), 0, []
    known = home / "known.toml"
    known.write_text(KNOWN)
    try:
        machine.up()
        with machine.client() as client:
            client.create_world(world(), POLICY)
        command = [str(Path(sys.executable).with_name("schemathesis"))]
        for config in ([], ["--config-file", str(known)]):
            # Rotating keys again and again only makes the file of keys long; the route has tests of its own.
            options = [
                "--max-examples",
                str(examples),
                "--seed",
                str(seed),
                "--checks",
                CHECKS,
                "--phases",
                "examples,fuzzing",
                "--exclude-path",
                "/tokens/rotate",
            ]
            options += [
                "--continue-on-failure",
                "--suppress-health-check",
                "all",
                "--warnings",
                "off",
                "--no-color",
            ]
            run = [
                *command,
                *config,
                "run",
                f"{machine.url}/openapi.json",
                "-H",
                f"Authorization: Bearer {machine.token('owner')}",
                *options,
            ]
            done = subprocess.run(run, capture_output=True, text=True, cwd=home)
            found = re.search(r"(\d[\d,]*) generated", done.stdout)
            made += int(found[1].replace(",", "")) if found else 0
            if done.returncode:
                failed.append(done.stdout[-6000:] + done.stderr[-1000:])
        log = (home / "gateway.log").read_text()
        if '"level": "error"' in log:
            failed.append(log[-3000:])
    finally:
        machine.close()
    return made, failed


def main(examples: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        made, failed = fuzz(Path(folder), examples, seed)
    for text in failed:
        print(text, file=sys.stderr)
    print(json.dumps({"requests": made, "seed": seed, "passes_with_failures": len(failed)}), flush=True)
    return 1 if failed or made < 40 * examples else 0


if __name__ == "__main__":
    exit_on_sigterm()
    exit_process(
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 250, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    )
