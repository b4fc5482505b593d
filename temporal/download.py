"""`python -m temporal.download FOLDER`: download the SDK's Temporal server into FOLDER.

A process of its own, because it ends a Temporal client (temporal.shutdown).
"""

import asyncio
import sys

from temporalio.testing import WorkflowEnvironment

from temporal.shutdown import exit_process


async def main(folder: str) -> None:
    """Start the SDK's server once, which downloads it."""
    environment = await WorkflowEnvironment.start_local(download_dest_dir=folder)
    await environment.shutdown()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1]))
        code = 0
    except RuntimeError as error:  # what the SDK raises when it can't download
        print(f"the SDK's download failed: {error}", file=sys.stderr)
        code = 1
    exit_process(code)
