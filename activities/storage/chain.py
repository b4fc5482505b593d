"""The hash chain of the audit trail: each row holds the hash of itself and of the row before it, so that a change, a hole or a missing end is noticed."""

from collections.abc import Mapping
from typing import Any

from qmtl_sdk.contracts.canonical import hash_parts

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
"""The columns that a row's hash is of, in this order."""


def link(before: str, row: Mapping[str, Any]) -> str:
    """The hash of a row whose predecessor has the hash `before` (the first: none)."""
    return hash_parts(before, *(str(row[name]) for name in LINKED))
