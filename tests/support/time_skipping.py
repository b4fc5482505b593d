"""Temporal's time-skipping test server: by Maven, kept in the tools folder.

Else the SDK's own download, where the internet is open.
"""

import shutil
import subprocess
from pathlib import Path

import portalocker

VERSION = "1.38.0"
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>qmtl</groupId><artifactId>testserver</artifactId><version>1</version>
<dependencies><dependency><groupId>io.temporal</groupId><artifactId>temporal-test-server</artifactId><version>{VERSION}</version></dependency></dependencies></project>
"""
_LIMIT_S = 600


def launcher(tools: Path) -> Path | None:
    """What starts the server, fetched if need be; None where there is neither Java nor Maven."""
    java, maven = shutil.which("java"), shutil.which("mvn")
    folder = tools / f"testserver-{VERSION}"
    found = folder / "start"
    if found.exists():
        return found if java else None
    if not (java and maven):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with portalocker.Lock(folder / "lock", timeout=_LIMIT_S):
        if not found.exists():
            (folder / "pom.xml").write_text(_POM)
            subprocess.run(
                [maven, "--quiet", "--batch-mode", "dependency:copy-dependencies", "-DoutputDirectory=lib"],
                cwd=folder,
                check=True,
                timeout=_LIMIT_S,
            )
            aside = folder / "start.new"
            aside.write_text(
                f'#!/bin/sh\nexec {java} -cp "{folder}/lib/*" io.temporal.testserver.TestServer "$@"\n'
            )
            aside.chmod(0o755)
            aside.rename(found)  # the last thing, so that a fetch that was cut off is done again
    return found
