"""A rule of retention: which records of a kind are due, and their tables."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Select, Table

from activities.retention.ages import Ages
from activities.settings import RetentionSettings

# Selects the records that are due, oldest first: the columns of the key, and `at`.
DueQuery = Callable[[Ages], "Select[tuple[object, ...]]"]


@dataclass(frozen=True)
class Part:
    """A table of a record, and its columns that hold the record's key."""

    table: Table
    key: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """A kind of record: which ones are due, and their tables.

    `days`: for how many days they are kept.
    """

    name: str
    days: Callable[[RetentionSettings], int]
    due: DueQuery
    parts: tuple[Part, ...]
