"""What tests and benchmarks share: processes, worlds, strategies, scenarios and checkers."""

from pathlib import Path

# The root of the source tree.
ROOT = Path(__file__).parents[2]
