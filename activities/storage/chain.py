"""The hash chain of the audit trail.

Each row holds the hash of itself and of the row before it, so that changed, missing and cut-off rows are
found.
"""

from collections.abc import Mapping
from typing import Any

from qmtl_sdk.contracts.canonical import hash_parts

OUTSIDE_WORLDS = "*"
"""The chain of what belongs to no world: principals, tokens, archives. No world can have this name."""

LINKED = (
    "chain",
    "number",
    "at",
    "actor",
    "action",
    "world_id",
    "subject",
    "correlation_id",
    "before",
    "after",
)
"""The columns that are hashed, in this order."""


def link(before: str, row: Mapping[str, Any]) -> str:
    """Return the hash of a row whose predecessor has the hash `before` (empty for the first row)."""
    return hash_parts(before, *(str(row[name]) for name in LINKED))
